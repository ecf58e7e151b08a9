//! Reconciling: compares what counts as in flight with the streams of ready work, at intervals and
//! after doubt. It takes no input, and is safe to run twice.
//!
//! Absence is decided behind a barrier: read the streams, then the end of COMMANDS, process commands
//! up to it, then reconcile. A message can be missing because its outcome is on the way, or because a
//! broker that was restarted has lost it while a processor has the run.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use job::{JobId, PriorityClass, Run};
use nats::{Broker, heartbeat::WorkerRegistry, names, work_queue};

use super::core::Core;

/// How often the streams are read without doubt.
const READ_EVERY: Duration = Duration::from_secs(30);

/// A reading that took longer says nothing about processors: the connection may have stalled, and
/// their heartbeats with it.
const READING_PROMPT: Duration = Duration::from_secs(2);

/// How long the processors have to report after a connection was made, before the streams are read:
/// more than the period of heartbeats.
const REPORT_WITHIN: Duration = Duration::from_secs(3);

/// A reading to make.
pub(super) struct ReadingRequest {
    number: u64,
    held: HashSet<(JobId, Run)>,
    lost_runs: Vec<(JobId, Run)>,
}

/// What was in the work streams, and the end of COMMANDS read after it.
pub(super) struct Reading {
    number: u64,
    present: HashSet<(JobId, Run)>,
    /// Runs that a worker reported before the streams were read. If its outcome was stored since, it is
    /// before the barrier, or is still on the way.
    held: HashSet<(JobId, Run)>,
    barrier: u64,
    /// Runs that no worker had before the barrier was read: a processor stops reporting a run once
    /// its outcome is stored, so the outcome would be before the barrier.
    lost_runs: Vec<(JobId, Run)>,
}

/// What a reconciliation found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reconciled {
    /// Runs in the streams that are no longer needed.
    pub unwanted: Vec<(JobId, Run)>,
    /// Runs to requeue: no online processor has them, now and before the barrier, so that none of
    /// their outcomes is on the way.
    pub lost: Vec<(JobId, Run)>,
}

impl ReadingRequest {
    /// Reads the streams, then the end of COMMANDS.
    pub async fn make(self, broker: &Broker) -> Result<Reading, work_queue::Error> {
        let Self { number, held, mut lost_runs } = self;
        let started = Instant::now();
        let mut present = HashSet::new();
        for class in PriorityClass::ALL {
            present.extend(broker.list_work(class).await?);
        }
        let barrier = broker.last_sequence(names::COMMANDS).await?;
        if started.elapsed() >= READING_PROMPT {
            lost_runs.clear();
        }
        Ok(Reading { number, present, held, barrier, lost_runs })
    }
}

/// Decides when to read, one reading at a time.
pub(super) struct Reconciler {
    reading: Option<Reading>,
    is_reading: bool,
    read_at: Instant,
    /// When the current connection was found, or leading began: processors report what they have.
    connected_at: Instant,
}

impl Reconciler {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { reading: None, is_reading: false, read_at: now, connected_at: now }
    }

    /// The broker may have been restarted: a reading waits for the reports of the processors.
    pub fn reconnected(&mut self) {
        self.connected_at = Instant::now();
    }

    /// Whether the processors have reported since the last connection, or have had the time to.
    fn has_reports(&self, workers: &WorkerRegistry) -> bool {
        self.connected_at.elapsed() >= REPORT_WITHIN
            || workers.all_reported_since(self.connected_at, Instant::now())
    }

    /// The reading to make now. `in_doubt` says that the streams should be read soon.
    pub fn due(
        &mut self,
        core: &mut Core,
        workers: &WorkerRegistry,
        in_doubt: bool,
    ) -> Option<ReadingRequest> {
        let is_due = in_doubt || self.read_at.elapsed() > READ_EVERY;
        if self.is_reading || !is_due || !self.has_reports(workers) {
            return None;
        }
        self.is_reading = true;
        self.read_at = Instant::now();
        let number = core.scheduler.begin_reading();
        let held = workers.held(Instant::now()).collect();
        Some(ReadingRequest { number, held, lost_runs: core.lost_runs(workers) })
    }

    /// Receives a reading. Returns whether the streams are still in doubt.
    pub fn done(&mut self, result: Result<Reading, work_queue::Error>) -> bool {
        match result {
            Ok(reading) => {
                self.reading = Some(reading);
                false
            }
            Err(error) => {
                tracing::warn!(error = %error, "work streams not read, trying again");
                self.is_reading = false;
                true
            }
        }
    }

    /// True if the commands up to the barrier of a reading are processed.
    pub fn is_at_barrier(&self, core: &Core) -> bool {
        self.reading.as_ref().is_some_and(|reading| core.state.through() >= reading.barrier)
    }

    /// Reconciles with the reading whose barrier is reached. `workers` must know the heartbeats that
    /// have arrived.
    pub fn reconcile(&mut self, core: &mut Core, workers: &WorkerRegistry) -> Reconciled {
        if !self.is_at_barrier(core) {
            return Reconciled::default();
        }
        let Some(reading) = self.reading.take() else { return Reconciled::default() };
        self.is_reading = false;
        let Core { state, scheduler, .. } = core;
        let mut present = reading.present;
        present.extend(reading.held.iter().filter(|(id, run)| {
            state.job(*id).is_some_and(|job| job.run == *run && !job.status.is_terminal())
        }));
        let unwanted = scheduler.reconcile(state, reading.number, &present);
        let mut lost = core.lost_runs(workers);
        lost.retain(|run| reading.lost_runs.contains(run));
        Reconciled { unwanted, lost }
    }
}

#[cfg(test)]
mod tests {
    use job::{Capacity, JobType};
    use nats::heartbeat::Heartbeat;

    use super::*;

    const CAPACITY: Capacity = Capacity { total: 1, job_types: [1, 1, 0] };

    /// A leader whose only job was dispatched as run 1.
    fn dispatched(id: JobId) -> (Core, Reconciler) {
        let (mut core, mut reconciler) = (Core::with_queued_job(id), Reconciler::new());
        reconcile(&mut core, &mut reconciler, &WorkerRegistry::default());
        let Core { state, scheduler, rules, .. } = &mut core;
        let next =
            scheduler.next(state, rules, 0, CAPACITY, Default::default(), Default::default());
        assert_eq!(next, Some(id));
        (core, reconciler)
    }

    /// Reads streams that have nothing, and reconciles.
    fn reconcile(core: &mut Core, reconciler: &mut Reconciler, workers: &WorkerRegistry) {
        let request = reconciler.due(core, workers, true).expect("it is due");
        let ReadingRequest { number, held, lost_runs } = request;
        let (present, barrier) = (HashSet::new(), core.state.through());
        assert!(!reconciler.done(Ok(Reading { number, present, held, barrier, lost_runs })));
        assert_eq!(reconciler.reconcile(core, workers), Reconciled::default());
    }

    fn report(workers: &mut WorkerRegistry, running: Vec<(JobId, Run)>) {
        let job_types = vec![JobType::ProcessBatch];
        let processor = "p".into();
        let heartbeat = Heartbeat { processor, capacity: 1, job_types, running, draining: false };
        workers.note(heartbeat, Instant::now());
    }

    #[test]
    fn run_that_no_stream_and_no_processor_has_is_dispatched_again() {
        let id = JobId::from_u128(1);
        let (mut core, mut reconciler) = dispatched(id);
        reconcile(&mut core, &mut reconciler, &WorkerRegistry::default());
        assert!(!core.scheduler.is_out(id));
    }

    #[test]
    fn run_that_a_processor_has_is_not_dispatched_again_although_its_message_is_lost() {
        let id = JobId::from_u128(1);
        let (mut core, mut reconciler) = dispatched(id);
        let mut workers = WorkerRegistry::default();
        report(&mut workers, vec![(id, 1)]);
        reconciler.connected_at -= REPORT_WITHIN;
        reconcile(&mut core, &mut reconciler, &workers);
        assert!(core.scheduler.is_out(id));
    }

    #[test]
    fn streams_are_read_after_a_reconnect_when_each_processor_has_reported_or_is_late() {
        let (mut core, mut reconciler) = dispatched(JobId::from_u128(1));
        let mut workers = WorkerRegistry::default();
        report(&mut workers, Vec::new());
        reconciler.reconnected();
        assert!(reconciler.due(&mut core, &workers, true).is_none());
        reconciler.connected_at -= REPORT_WITHIN;
        reconcile(&mut core, &mut reconciler, &workers);
        reconciler.reconnected();
        report(&mut workers, Vec::new());
        reconcile(&mut core, &mut reconciler, &workers);
    }
}
