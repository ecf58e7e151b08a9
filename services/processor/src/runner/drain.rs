//! The end of a processor: runs in flight may end within the grace period, the rest is handed back.

use std::sync::Arc;

use job::{JobId, Run, command::End};
use nats::consumer::Delivery;
use tokio::sync::mpsc;

use super::{Runner, pull::Arrival};
use crate::admission::{self, AdmissionGuard};

impl Runner {
    /// Waits for the runs in flight; hands back those that do not end within the grace period.
    pub(super) async fn drain(
        self: &Arc<Self>,
        mut admission: AdmissionGuard,
        mut arrivals: mpsc::Receiver<Arrival>,
    ) {
        tracing::info!(running = self.in_flight.runs().len(), "draining");
        self.publish_heartbeat().await;
        self.tasks.close();
        let grace = tokio::time::sleep(self.config.grace());
        tokio::pin!(grace);
        let ended = self.tasks.wait();
        tokio::pin!(ended);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                arrival = arrivals.recv(), if open => match arrival {
                    Some(arrival) => {
                        for held in self.admit(&mut admission, vec![arrival]).await {
                            self.hand_back(held.delivery).await;
                        }
                    }
                    None => open = false,
                },
                () = &mut grace, if !self.release.is_cancelled() => self.release.cancel(),
                () = &mut ended => return,
            }
        }
    }

    /// Hands back a run before its start.
    pub(super) async fn hand_back(&self, delivery: Delivery) {
        let (job, run) = (delivery.work.job, delivery.work.run);
        let end = if delivery.redelivered { End::Redelivered } else { End::Released };
        let outcome = admission::outcome(&delivery.work, &self.name, end, delivery.priority_class);
        if admission::commit(&self.outcomes, outcome).await.is_ok() {
            delivery.ack().await;
        }
        self.release_run(job, run).await;
    }

    /// Removes a run from those in flight; a redelivery of it is acked.
    pub(super) async fn release_run(&self, job: JobId, run: Run) {
        if let Some(again) = self.in_flight.release(job, run) {
            again.ack().await;
        }
    }
}
