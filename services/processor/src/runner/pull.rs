//! The pull loop: free slots are filled from the streams, class by class, and short runs are prefetched.
//! Runs that wait here for too long are handed back for other processors.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use job::{JobType, PriorityClass};
use nats::consumer::{ACK_WAIT, Delivery};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{PULL_PAUSE, Runner};
use crate::{
    admission::AdmissionGuard,
    in_flight::{Admission, Kept},
    incarnation::{self, BrokerIncarnation},
};

/// How long a run waits for a slot before it is handed back for others.
const HELD_WAITS: Duration = Duration::from_secs(1);
/// A delivery that is not admitted yet; its lease is extended.
pub(super) struct Arrival {
    pub delivery: Delivery,
    pub kept: Kept,
    origin: Origin,
}

/// What a delivery came from.
#[derive(Clone)]
struct Origin {
    incarnation: BrokerIncarnation,
    connects: u64,
    at: Instant,
}

/// An admitted run that waits for a slot.
pub(super) struct Held {
    pub delivery: Delivery,
    pub stop: CancellationToken,
    pub since: Instant,
}

/// A pull in progress. What it brings must not be dropped.
type Pull = JoinHandle<Vec<Arrival>>;

impl Origin {
    /// False if the broker may have delivered the run to another processor by `now`: it was restarted, or the
    /// connection was away for longer than it waits. If the message is still there, it is redelivered.
    fn is_valid_at(&self, now: &Self) -> bool {
        let is_old = now.at.duration_since(self.at) >= ACK_WAIT;
        !(is_old && self.connects != now.connects) && self.incarnation == now.incarnation
    }
}

/// Waits for a time, or without a limit.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// What a pull brings, if one is in progress. Cancel safe.
async fn pulled(pull: &mut Option<Pull>) -> Vec<Arrival> {
    let Some(running) = pull else { return std::future::pending().await };
    let arrivals = running.await;
    *pull = None;
    arrivals.expect("a pull does not panic")
}

impl Runner {
    /// Fills free slots until the processor is stopped; returns the admission of deliveries.
    pub(super) async fn fill_slots(
        self: &Arc<Self>,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> AdmissionGuard {
        let (broker, outcomes) = (self.broker.clone(), self.outcomes.clone());
        let (in_flight, stop) = (self.in_flight.clone(), self.stop.clone());
        let pullers = self.pullers.clone();
        let mut admission =
            AdmissionGuard::new(broker, pullers, self.name.clone(), outcomes, in_flight, stop)
                .await;
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut pull: Option<Pull> = None;
        let mut turn = 0;
        loop {
            let lanes = self.lanes.to_ask(turn + 1);
            let wanted = self.to_pull(held.len());
            if pull.is_none() && wanted > 0 && !lanes.is_empty() {
                turn += 1;
                pull = Some(tokio::spawn(self.clone().pull(lanes.clone(), wanted)));
            }
            let oldest = held.iter().map(|held| held.since + HELD_WAITS).min();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                permit = self.slots.clone().acquire_owned(), if !held.is_empty() => {
                    let (Ok(permit), Some(next)) = (permit, held.pop_front()) else { break };
                    self.tasks.spawn(self.clone().run(next, permit));
                }
                Some(arrival) = arrivals.recv() => {
                    // It came alone, from a lane that had nothing: prefetched runs of lower classes wait.
                    for arrived in self.admit(&mut admission, vec![arrival]).await {
                        let class = arrived.delivery.priority_class;
                        let is_lower = |held: &Held| held.delivery.priority_class > class;
                        let at = held.iter().position(is_lower).unwrap_or(held.len());
                        held.insert(at, arrived);
                    }
                }
                deliveries = pulled(&mut pull) => {
                    held.extend(self.admit(&mut admission, deliveries).await);
                }
                () = until(oldest) => {
                    // Another processor may have a slot for them. These slots are slower than thought.
                    self.durations.record(HELD_WAITS);
                    self.hand_back_held(&mut held);
                }
                // No slot is held while there is nothing to run: this only waits until one is free.
                _ = self.slots.acquire(),
                    if held.is_empty() && pull.is_none() && !lanes.is_empty() => {}
            }
        }
        if pull.is_some() {
            let deliveries = pulled(&mut pull).await;
            held.extend(self.admit(&mut admission, deliveries).await);
        }
        self.hand_back_held(&mut held);
        admission
    }

    /// How many runs to pull now: for the free slots and to prefetch, but not one by one.
    fn to_pull(&self, held: usize) -> usize {
        let prefetch = self.durations.prefetch(self.config.concurrency);
        let wanted = self.slots.available_permits() + prefetch;
        if held <= wanted / 2 { wanted - held } else { 0 }
    }

    /// The deliveries that this processor may run.
    pub(super) async fn admit(
        &self,
        admission: &mut AdmissionGuard,
        arrivals: Vec<Arrival>,
    ) -> Vec<Held> {
        let now = self.origin();
        let (deliveries, kept): (Vec<_>, Vec<_>) = arrivals
            .into_iter()
            .filter(|arrival| arrival.origin.is_valid_at(&now))
            .map(|arrival| (arrival.delivery, arrival.kept))
            .unzip();
        let mut held = Vec::new();
        for delivery in admission.admit(deliveries).await {
            held.extend(self.register(delivery).await);
        }
        drop(kept);
        held
    }

    fn hand_back_held(self: &Arc<Self>, held: &mut VecDeque<Held>) {
        for waiting in held.drain(..) {
            let runner = self.clone();
            self.tasks.spawn(async move { runner.hand_back(waiting.delivery).await });
        }
    }

    /// The origin of a delivery that is requested now.
    fn origin(&self) -> Origin {
        let incarnation = BrokerIncarnation::current(&self.broker, &self.pullers);
        let connects = incarnation::connects(&self.broker);
        Origin { incarnation, connects, at: Instant::now() }
    }

    /// Pulls up to `max` runs from these lanes, in their order. Not cancel-safe: pulled runs belong to
    /// this call.
    async fn pull(
        self: Arc<Self>,
        lanes: Vec<(PriorityClass, JobType)>,
        max: usize,
    ) -> Vec<Arrival> {
        let mut taken = Vec::new();
        for (class, job_type) in lanes {
            let asked = max.saturating_sub(taken.len());
            if asked == 0 || self.stop.is_cancelled() {
                break;
            }
            let origin = self.origin();
            match self.pullers.take(class, job_type, asked).await {
                Ok(more) => {
                    self.lanes.note(class, job_type, more.len() >= asked);
                    taken.extend(more.into_iter().map(|delivery| self.arrival(delivery, &origin)));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "ready work not pulled, trying again");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
            }
        }
        taken
    }

    fn arrival(&self, delivery: Delivery, origin: &Origin) -> Arrival {
        let kept = self.in_flight.keep(delivery.lease());
        Arrival { delivery, kept, origin: Origin { at: Instant::now(), ..origin.clone() } }
    }

    /// Waits for work of one class and kind, one run at a time, for as long as slots are free.
    pub(super) async fn wait_for_work(
        self: Arc<Self>,
        class: PriorityClass,
        job_type: JobType,
        sender: mpsc::Sender<Arrival>,
    ) {
        while !self.stop.is_cancelled() {
            // The slot is released at once: this only waits until one is free.
            let free = tokio::select! {
                () = self.stop.cancelled() => return,
                free = self.slots.acquire() => free,
            };
            drop(free);
            let origin = self.origin();
            // A pull that waits is not cut off: what it brings after the stop is handed back.
            match self.pullers.wait(class, job_type).await {
                Ok(None) => {}
                Ok(Some(delivery)) => {
                    if delivery.behind > 0 {
                        self.lanes.note(class, job_type, true);
                    }
                    if sender.send(self.arrival(delivery, &origin)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "ready work not awaited, trying again");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
            }
        }
    }

    /// Registers a run as in flight. `None` if it is in flight already, or was stopped: then it is acked.
    async fn register(&self, delivery: Delivery) -> Option<Held> {
        let (job, run) = (delivery.work.job, delivery.work.run);
        match self.in_flight.take(job, run, delivery.lease()) {
            Admission::RunInFlight(stop) => Some(Held { delivery, stop, since: Instant::now() }),
            Admission::Already => None,
            Admission::Stopped => {
                delivery.ack().await;
                None
            }
        }
    }
}
