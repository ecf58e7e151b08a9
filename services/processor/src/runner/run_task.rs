//! One run: execute it in its slot, record the outcome, and only then ack the message. If the record
//! fails, the message stays unacked and is redelivered. The next run takes the slot meanwhile.

use std::{
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use job::{
    Usage,
    command::{End, Progress, Started},
    time::Millis,
};
use nats::wire::{Item, Work};
use tokio::sync::{OwnedSemaphorePermit, SetOnce};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Runner, pull::Held};
use crate::{
    admission,
    execute::{self, Ended},
    measurements,
    prefetch::SHORT_RUN,
    results,
};

impl Runner {
    /// Runs one job in its slot.
    pub(super) async fn run(self: Arc<Self>, held: Held, permit: OwnedSemaphorePermit) {
        let Held { delivery, stop, .. } = held;
        if stop.is_cancelled() {
            // It was canceled while it waited here.
            let (job, run) = (delivery.work.job, delivery.work.run);
            delivery.ack().await;
            return self.release_run(job, run).await;
        }
        let work = Arc::new(delivery.work.clone());
        let (started_at, started) = (service::now_ms(), Instant::now());
        let waited_ms = u64::try_from(started_at - work.queued_at).unwrap_or(0);
        measurements::started(work.job_type, Duration::from_millis(waited_ms));
        let ended = self.execute(&work, started_at, stop).await;
        let took = started.elapsed();
        measurements::ended(work.job_type, outcome_name(&ended), took);
        if matches!(ended, Ended::Reported(..)) {
            self.durations.record(took);
        }
        let took_ms = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
        // The slot is free when the handler ends. The semaphore is never closed.
        let weight = self.durations.recording_weight(self.config.concurrency);
        let recording = self.recordings.acquire_many(weight).await;
        drop(permit);
        let recorded = match outcome(ended) {
            None => Ok(()),
            Some((end, usage)) => {
                let bytes_max = self.config.result_bytes_max();
                let end = results::store_large(&self.broker, &work, end, bytes_max).await;
                let class = delivery.priority_class;
                let mut report = execute::report(&work, &self.name, class, started_at, end, usage);
                // The end by the clock that does not jump.
                report.finished_at = started_at.saturating_add(took_ms);
                admission::commit(&self.outcomes, report).await
            }
        };
        match recorded {
            Ok(()) => delivery.ack().await,
            Err(error) => {
                tracing::error!(
                    job.id = %work.job,
                    error = %error,
                    "outcome not recorded: the run is redelivered"
                );
            }
        }
        self.release_run(work.job, work.run).await;
        drop(recording);
    }

    /// Executes the handler. The start is reported once the run has taken a moment, or with its first
    /// progress: an outcome implies it.
    async fn execute(
        self: &Arc<Self>,
        work: &Arc<Work>,
        started_at: Millis,
        stop: CancellationToken,
    ) -> Ended {
        let (once, is_reported) = (Once::new(), Arc::new(SetOnce::new()));
        let report_started =
            || once.call_once(|| self.report_started(work, started_at, is_reported.clone()));
        let report_progress = |progress| {
            report_started();
            self.report_progress(work, progress, is_reported.clone());
        };
        let (limit, release) = (self.config.time_limit(), self.release.clone());
        let running =
            execute::run(&self.registry, work.clone(), limit, stop, release, report_progress);
        tokio::pin!(running);
        tokio::select! {
            biased;
            ended = &mut running => return ended,
            () = tokio::time::sleep(SHORT_RUN) => report_started(),
        }
        let _long = self.durations.enter_long();
        running.await
    }

    /// Reports the start of a run without waiting: its outcome implies it.
    fn report_started(self: &Arc<Self>, work: &Work, at: i64, is_reported: Arc<SetOnce<()>>) {
        let (job, run, worker) = (work.job, work.run, self.name.as_str().into());
        let started = Started { job, run, worker, at, token: work.token };
        let item = Item { id: Uuid::now_v7(), command: started };
        let json = serde_json::to_vec(&item).expect("ids and numbers are JSON");
        let started = self.started.clone();
        tokio::spawn(async move {
            let _ = started.commit(json).await;
            // Only this task sets it.
            let _ = is_reported.set(());
        });
    }

    /// Publishes the progress of a run without waiting. The start is published first: state ignores
    /// the progress of a run that has not started.
    fn report_progress(&self, work: &Work, progress: job::Json, is_reported: Arc<SetOnce<()>>) {
        let item = Item {
            id: Uuid::now_v7(),
            command: Progress { job: work.job, run: work.run, progress, token: work.token },
        };
        let json = serde_json::to_vec(&item).expect("ids and JSON are JSON");
        let publisher = self.progress.clone();
        tokio::spawn(async move {
            is_reported.wait().await;
            let _ = publisher.commit(json).await;
        });
    }
}

/// The outcome of a run, as it is measured.
fn outcome_name(ended: &Ended) -> &'static str {
    match ended {
        Ended::Reported(End::Done { .. }, _) => "completed",
        Ended::Reported(End::Retry { .. }, _) => "retry",
        Ended::Reported(End::Reject { .. }, _) => "rejected",
        Ended::Reported(End::Deferred { .. }, _) => "deferred",
        Ended::Reported(..) | Ended::Released(_) => "released",
        Ended::Stopped(_) => "stopped",
    }
}

/// The outcome to record; `None` if the run was stopped and cost nothing.
fn outcome(ended: Ended) -> Option<(End, Usage)> {
    match ended {
        Ended::Reported(end, usage) => Some((end, usage)),
        Ended::Released(usage) => Some((End::Released, usage)),
        Ended::Stopped(usage) if usage.is_nothing() => None,
        // State refuses the outcome of a run that is over, and counts its usage.
        Ended::Stopped(usage) => {
            let error = "the run was stopped".into();
            Some((End::Retry { error, after_ms: None }, usage))
        }
    }
}
