//! The pull loop: free slots are filled from the streams, class by class, and a few short runs are
//! pulled ahead. Runs that wait here for too long are handed back for other processors.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use job::{JobType, PriorityClass};
use nats::consumer::Delivery;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{PULL_PAUSE, Runner};
use crate::{
    admission::AdmissionGuard,
    in_flight::{Admission, Kept},
};

/// How long a run waits for a slot before it is handed back for others.
const HELD_WAITS: Duration = Duration::from_secs(1);
/// Runs that wait for a slot, beyond which no arrival is taken up.
const HELD_MAX: usize = 16;

/// A delivery that is not admitted yet; its lease is extended.
pub(super) struct Arrival {
    pub delivery: Delivery,
    pub kept: Kept,
}

/// An admitted run that waits for a slot.
pub(super) struct Held {
    pub delivery: Delivery,
    pub stop: CancellationToken,
    pub since: Instant,
}

/// A pull in progress. What it brings must not be dropped.
type Pull = Pin<Box<dyn Future<Output = Vec<Arrival>> + Send>>;

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
    arrivals
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
            let missing = self.missing(held.len());
            if pull.is_none() && missing > 0 && !lanes.is_empty() {
                turn += 1;
                pull = Some(Box::pin(self.clone().pull(lanes.clone(), missing)));
            }
            let oldest = held.front().map(|held| held.since + HELD_WAITS);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                permit = self.slots.clone().acquire_owned(), if !held.is_empty() => {
                    let (Ok(permit), Some(next)) = (permit, held.pop_front()) else { break };
                    self.tasks.spawn(self.clone().run(next, permit));
                }
                Some(arrival) = arrivals.recv(), if held.len() < HELD_MAX => {
                    held.extend(self.admit(&mut admission, vec![arrival]).await);
                }
                deliveries = pulled(&mut pull) => {
                    held.extend(self.admit(&mut admission, deliveries).await);
                }
                () = until(oldest) => {
                    // Another processor may have a slot for them. These slots are slower than thought.
                    self.pace.note(HELD_WAITS);
                    self.hand_back_held(&mut held).await;
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
        self.hand_back_held(&mut held).await;
        admission
    }

    /// How many runs to pull now: enough for the free slots, and some ahead, but not one by one.
    fn missing(&self, held: usize) -> usize {
        let wanted = self.slots.available_permits() + self.pace.ahead(self.config.concurrency);
        if held <= wanted / 2 { wanted - held } else { 0 }
    }

    /// The deliveries that this processor may run.
    pub(super) async fn admit(
        &self,
        admission: &mut AdmissionGuard,
        arrivals: Vec<Arrival>,
    ) -> Vec<Held> {
        let (deliveries, kept): (Vec<_>, Vec<_>) =
            arrivals.into_iter().map(|arrival| (arrival.delivery, arrival.kept)).unzip();
        let mut held = Vec::new();
        for delivery in admission.admit(deliveries).await {
            held.extend(self.register(delivery).await);
        }
        drop(kept);
        held
    }

    async fn hand_back_held(&self, held: &mut VecDeque<Held>) {
        for waiting in held.drain(..) {
            self.hand_back(waiting.delivery).await;
        }
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
            match self.pullers.take(class, job_type, asked).await {
                Ok(more) => {
                    self.lanes.note(class, job_type, more.len() >= asked);
                    taken.extend(more.into_iter().map(|delivery| self.arrival(delivery)));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "ready work not pulled, trying again");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
            }
        }
        taken
    }

    fn arrival(&self, delivery: Delivery) -> Arrival {
        let kept = self.in_flight.keep(delivery.lease());
        Arrival { delivery, kept }
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
            // A pull that waits is not cut off: what it brings after the stop is handed back.
            match self.pullers.wait(class, job_type).await {
                Ok(None) => {}
                Ok(Some(delivery)) => {
                    if delivery.behind > 0 {
                        self.lanes.note(class, job_type, true);
                    }
                    if sender.send(self.arrival(delivery)).await.is_err() {
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
