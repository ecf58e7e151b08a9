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

use job::{Id, JobId, PriorityClass, Run};
use nats::{Broker, heartbeat::WorkerRegistry, names, work_queue};

use super::core::Core;

/// How often the streams are read without doubt.
const READ_EVERY: Duration = Duration::from_secs(30);

/// A reading that took longer says nothing about processors: the connection may have stalled, and
/// their heartbeats with it.
const READING_PROMPT: Duration = Duration::from_secs(2);

/// How long after a new connection the streams are read without the heartbeats of all processors: more
/// than the period of heartbeats.
const HEARTBEATS_WITHIN: Duration = Duration::from_secs(3);

/// A reading to make.
pub(super) struct ReadingRequest {
    number: u64,
    connection: u64,
    held: HashSet<(JobId, Run)>,
    lost_runs: Vec<(JobId, Run)>,
}

/// What was in the work streams, and the end of COMMANDS read after it.
pub(super) struct Reading {
    number: u64,
    /// The number of the connection that it was requested on.
    connection: u64,
    present: HashSet<(JobId, Run)>,
    /// Runs that a heartbeat named before the streams were read. If its outcome was stored since, it is
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
        let Self { number, connection, held, mut lost_runs } = self;
        let started = Instant::now();
        let mut present = HashSet::new();
        for class in PriorityClass::ALL {
            present.extend(broker.list_work(class).await?);
        }
        let barrier = broker.last_sequence(names::COMMANDS).await?;
        if started.elapsed() >= READING_PROMPT {
            lost_runs.clear();
        }
        Ok(Reading { number, connection, present, held, barrier, lost_runs })
    }
}

/// Decides when to read, one reading at a time.
pub(super) struct Reconciler {
    reading: Option<Reading>,
    is_reading: bool,
    read_at: Instant,
    /// Connections since leading began.
    connection: u64,
    /// When the current one was noticed, or leading began.
    connected_at: Instant,
    /// The processors that were known then. Their heartbeats name the runs whose messages a restarted
    /// broker may have lost.
    expected: Vec<Id>,
}

impl Reconciler {
    /// Begins to lead; `workers` has the heartbeats that came before.
    pub fn new(workers: &WorkerRegistry) -> Self {
        let now = Instant::now();
        let expected = workers.processors().cloned().collect();
        Self {
            reading: None,
            is_reading: false,
            read_at: now,
            connection: 0,
            connected_at: now,
            expected,
        }
    }

    /// The broker may have been restarted: an earlier reading is dropped, and the next one waits for
    /// heartbeats. `workers` must know those that came before.
    pub fn reconnected(&mut self, workers: &WorkerRegistry) {
        self.connection += 1;
        self.connected_at = Instant::now();
        self.expected = workers.processors().cloned().collect();
        if self.reading.take().is_some() {
            self.is_reading = false;
        }
    }

    /// Whether the processors have sent heartbeats since the last connection, or have had the time to. If
    /// none is known, one with runs may be about to come.
    fn has_heartbeats(&self, core: &Core, workers: &WorkerRegistry) -> bool {
        let mut expected = self.expected.iter();
        self.connected_at.elapsed() >= HEARTBEATS_WITHIN
            || core.state.counts(None).total() == 0
            || !self.expected.is_empty()
                && expected.all(|it| workers.has_heartbeat_since(it, self.connected_at))
    }

    /// The reading to make now. `in_doubt` says that the streams should be read soon.
    pub fn due(
        &mut self,
        core: &mut Core,
        workers: &WorkerRegistry,
        in_doubt: bool,
    ) -> Option<ReadingRequest> {
        let is_due = in_doubt || self.read_at.elapsed() > READ_EVERY;
        if self.is_reading || !is_due || !self.has_heartbeats(core, workers) {
            return None;
        }
        self.is_reading = true;
        self.read_at = Instant::now();
        let number = core.scheduler.begin_reading();
        let held = workers.held(Instant::now()).collect();
        let (connection, lost_runs) = (self.connection, core.lost_runs(workers));
        Some(ReadingRequest { number, connection, held, lost_runs })
    }

    /// Receives a reading. Returns whether the streams are still in doubt.
    pub fn done(&mut self, result: Result<Reading, work_queue::Error>) -> bool {
        match result {
            Ok(reading) if reading.connection == self.connection => {
                self.reading = Some(reading);
                false
            }
            Ok(_) => {
                self.is_reading = false;
                true
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
        let workers = WorkerRegistry::default();
        let (mut core, mut reconciler) = (Core::with_queued_job(id), Reconciler::new(&workers));
        assert!(reconciler.due(&mut core, &workers, true).is_none(), "a processor may come");
        reconciler.connected_at -= HEARTBEATS_WITHIN;
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
        let ReadingRequest { number, connection, held, lost_runs } = request;
        let (present, barrier) = (HashSet::new(), core.state.through());
        let reading = Reading { number, connection, present, held, barrier, lost_runs };
        assert!(!reconciler.done(Ok(reading)));
        assert_eq!(reconciler.reconcile(core, workers), Reconciled::default());
    }

    fn heartbeat(workers: &mut WorkerRegistry, running: Vec<(JobId, Run)>) {
        let job_types = vec![JobType::ProcessBatch];
        let processor = "p".into();
        let sent = Heartbeat { processor, capacity: 1, job_types, running, ..Heartbeat::default() };
        workers.note(sent, Instant::now());
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
        heartbeat(&mut workers, vec![(id, 1)]);
        reconcile(&mut core, &mut reconciler, &workers);
        assert!(core.scheduler.is_out(id));
    }

    #[test]
    fn streams_are_read_after_a_reconnect_when_each_processor_sent_a_heartbeat_or_is_late() {
        let (mut core, mut reconciler) = dispatched(JobId::from_u128(1));
        let mut workers = WorkerRegistry::default();
        heartbeat(&mut workers, Vec::new());
        reconciler.reconnected(&workers);
        assert!(reconciler.due(&mut core, &workers, true).is_none());
        reconciler.connected_at -= HEARTBEATS_WITHIN;
        reconcile(&mut core, &mut reconciler, &workers);
        reconciler.reconnected(&workers);
        heartbeat(&mut workers, Vec::new());
        reconcile(&mut core, &mut reconciler, &workers);
    }

    #[test]
    fn what_was_requested_before_a_reconnect_is_read_again() {
        let (mut core, mut reconciler) = dispatched(JobId::from_u128(1));
        let mut workers = WorkerRegistry::default();
        let request = reconciler.due(&mut core, &workers, true).expect("it is due");
        reconciler.reconnected(&workers);
        let ReadingRequest { number, connection, held, lost_runs } = request;
        let (present, barrier) = (HashSet::new(), core.state.through());
        let reading = Reading { number, connection, present, held, barrier, lost_runs };
        assert!(reconciler.done(Ok(reading)), "the streams are still in doubt");
        assert!(!reconciler.is_at_barrier(&core));
        heartbeat(&mut workers, Vec::new());
        reconciler.connected_at -= HEARTBEATS_WITHIN;
        reconcile(&mut core, &mut reconciler, &workers);
    }
}
