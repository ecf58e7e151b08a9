//! Reconciling: compares what counts as in flight with the streams of ready work, at intervals and
//! after doubt. It takes no input, and is safe to run twice.
//!
//! Absence is decided behind a barrier: read the streams, then the end of COMMANDS, process commands
//! up to it, then reconcile. A message can be missing because its outcome is on the way.

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

/// A reading to make.
pub(super) struct ReadingRequest {
    number: u64,
    lost_runs: Vec<(JobId, Run)>,
}

/// What was in the work streams, and the end of COMMANDS read after it.
pub(super) struct Reading {
    number: u64,
    present: HashSet<(JobId, Run)>,
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
        let Self { number, mut lost_runs } = self;
        let started = Instant::now();
        let mut present = HashSet::new();
        for class in PriorityClass::ALL {
            present.extend(broker.list_work(class).await?);
        }
        let barrier = broker.last_sequence(names::COMMANDS).await?;
        if started.elapsed() >= READING_PROMPT {
            lost_runs.clear();
        }
        Ok(Reading { number, present, barrier, lost_runs })
    }
}

/// Decides when to read, one reading at a time.
pub(super) struct Reconciler {
    reading: Option<Reading>,
    is_reading: bool,
    read_at: Instant,
}

impl Reconciler {
    pub fn new() -> Self {
        Self { reading: None, is_reading: false, read_at: Instant::now() }
    }

    /// The reading to make now. `in_doubt` says that the streams should be read soon.
    pub fn due(
        &mut self,
        core: &mut Core,
        workers: &WorkerRegistry,
        in_doubt: bool,
    ) -> Option<ReadingRequest> {
        if self.is_reading || !(in_doubt || self.read_at.elapsed() > READ_EVERY) {
            return None;
        }
        self.is_reading = true;
        self.read_at = Instant::now();
        let number = core.scheduler.begin_reading();
        Some(ReadingRequest { number, lost_runs: core.lost_runs(workers) })
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
        // A broker may have lost the message of a run that a processor has.
        present.extend(workers.held(Instant::now()).filter(|(id, run)| {
            state.job(*id).is_some_and(|job| job.run == *run && !job.status.is_terminal())
        }));
        let unwanted = scheduler.reconcile(state, reading.number, &present);
        let mut lost = core.lost_runs(workers);
        lost.retain(|run| reading.lost_runs.contains(run));
        Reconciled { unwanted, lost }
    }
}
