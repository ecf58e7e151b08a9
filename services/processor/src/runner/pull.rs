//! The pull loop: free slots are filled from the streams, class by class. Deliveries beyond the free
//! slots run next, or are handed back for other processors.

use std::{
    collections::VecDeque,
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

/// How long a delivery waits for a slot before it is handed back for others.
const SURPLUS_WAITS: Duration = Duration::from_secs(1);
/// Deliveries beyond the free slots that are held at most.
const SURPLUS_MAX: usize = 16;

/// A delivery that is not admitted yet; its lease is extended.
pub(super) struct Arrival {
    pub delivery: Delivery,
    pub kept: Kept,
    pub since: Instant,
}

/// An admitted run that waits for a slot.
pub(super) struct Held {
    pub delivery: Delivery,
    pub stop: CancellationToken,
    pub since: Instant,
}

/// Waits for a time, or without a limit.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
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
        let mut surplus: Vec<Arrival> = Vec::new();
        for turn in 1.. {
            // No slot is held while there is nothing to run: the puller waits for work, then takes
            // a slot.
            if held.is_empty() && surplus.is_empty() && self.lanes.to_ask(turn).is_empty() {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    arrival = arrivals.recv() => surplus.extend(arrival),
                }
                continue;
            }
            let oldest = held.front().map(|held| held.since);
            let oldest = oldest.into_iter().chain(surplus.first().map(|first| first.since)).min();
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                permit = self.slots.clone().acquire_owned() => permit,
                Some(arrival) = arrivals.recv(), if surplus.len() < SURPLUS_MAX => {
                    surplus.push(arrival);
                    continue;
                }
                () = until(oldest.map(|since| since + SURPLUS_WAITS)) => {
                    // Another processor may have a slot for them.
                    self.hand_back_surplus(&mut admission, &mut held, &mut surplus).await;
                    continue;
                }
            };
            let Ok(permit) = permit else { break };
            if held.is_empty() {
                let mut deliveries = std::mem::take(&mut surplus);
                if deliveries.is_empty() {
                    deliveries = self.next_deliveries(turn, arrivals).await;
                }
                held.extend(self.admit(&mut admission, deliveries).await);
            }
            if let Some(next) = held.pop_front() {
                self.tasks.spawn(self.clone().run(next, permit));
            }
        }
        self.hand_back_surplus(&mut admission, &mut held, &mut surplus).await;
        admission
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

    async fn hand_back_surplus(
        &self,
        admission: &mut AdmissionGuard,
        held: &mut VecDeque<Held>,
        surplus: &mut Vec<Arrival>,
    ) {
        held.extend(self.admit(admission, std::mem::take(surplus)).await);
        for waiting in held.drain(..) {
            self.hand_back(waiting.delivery).await;
        }
    }

    /// Pulls as many runs as there are free slots from the lanes with work, class by class. Not
    /// cancel-safe: pulled runs belong to this call.
    async fn next_deliveries(
        &self,
        turn: usize,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> Vec<Arrival> {
        // The caller holds the permit of one more slot.
        let free = self.slots.available_permits() + 1;
        let mut taken = Vec::new();
        while let Ok(arrival) = arrivals.try_recv() {
            taken.push(arrival);
        }
        for (class, job_type) in self.lanes.to_ask(turn) {
            let asked = free.saturating_sub(taken.len());
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
        Arrival { delivery, kept, since: Instant::now() }
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
