//! Reconciling: runs by period and on signal, takes no input, and is safe to run twice.
//!
//! Absence is decided behind a barrier: list the subjects of the work streams, read the end of
//! COMMANDS, process commands up to it, then reconcile. A message can be missing because its
//! outcome is on the way.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use job::{Class, JobId, Run, Status};
use mesh::{Broker, heartbeat, names};

use crate::leader::{Done, Leader};

/// How often the streams are read without a reason.
pub(crate) const READ_EVERY: Duration = Duration::from_secs(30);

/// A reading that took longer says nothing of processors: the connection may have stalled, and their
/// heartbeats with it.
const READING_PROMPT: Duration = Duration::from_secs(2);

/// What was in the work streams, and the end of COMMANDS read after it.
pub(crate) struct Reading {
    pub number: u64,
    pub present: HashSet<(JobId, Run)>,
    pub barrier: u64,
    /// Runs that no worker had before the barrier was read: a processor stops reporting a run once
    /// its outcome is stored, so the outcome would be before the barrier.
    pub lost_runs: Vec<(JobId, Run)>,
}

/// Reads the streams, then the end of COMMANDS.
pub(crate) async fn read(
    broker: &Broker,
    number: u64,
    lost_runs: Vec<(JobId, Run)>,
) -> Result<Reading, mesh::work_queue::Error> {
    let begun = Instant::now();
    let mut present = HashSet::new();
    for class in Class::ALL {
        present.extend(broker.list_work(class).await?);
    }
    let barrier = broker.last_sequence(names::COMMANDS).await?;
    let lost_runs = if begun.elapsed() < READING_PROMPT { lost_runs } else { Vec::new() };
    Ok(Reading { number, present, barrier, lost_runs })
}

impl Leader<'_> {
    /// Starts a reading where one is due and none is under way.
    pub(crate) fn start_due_reading(&mut self) {
        let due = self.last_reading.elapsed() > READ_EVERY || self.dispatcher.take_suspicion();
        if !due || self.reading_under_way {
            if due {
                self.dispatcher.suspect();
            }
            return;
        }
        self.reading_under_way = true;
        self.last_reading = Instant::now();
        let number = self.dispatcher.begin_reading();
        let lost_runs = self.lost_runs();
        let (broker, done) = (self.broker.clone(), self.done.clone());
        tokio::spawn(async move {
            let read = read(&broker, number, lost_runs).await;
            // A replaced leader needs no answer.
            let _ = done.send(Done::Read(read)).await;
        });
    }

    /// Reconciles with a reading once the commands up to its barrier are processed.
    pub(crate) async fn start_due_reconciliation(&mut self) -> anyhow::Result<()> {
        let reached = |reading: &Reading, through: u64| through >= reading.barrier;
        if !self.reading.as_ref().is_some_and(|reading| reached(reading, self.state.through())) {
            return Ok(());
        }
        let Some(reading) = self.reading.take() else { return Ok(()) };
        let unwanted = self.dispatcher.reconcile(&mut self.state, reading.number, &reading.present);
        self.reading_under_way = false;
        self.tell_to_stop(&unwanted).await?;
        self.watch_workers(&reading.lost_runs).await
    }

    /// Requeues runs that have been processing for a while and that no online processor has, now
    /// and before the processed barrier: none of their outcomes is on the way.
    async fn watch_workers(&mut self, before: &[(JobId, Run)]) -> anyhow::Result<()> {
        // Heartbeats that arrived before the answers may still be queued.
        self.queries.drain_heartbeats();
        let mut lost = self.lost_runs();
        lost.retain(|run| before.contains(run));
        if lost.is_empty() { Ok(()) } else { self.reclaim_lost_runs(lost).await }
    }

    /// True once heartbeats have been received for long enough to be complete.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled_since.elapsed() >= heartbeat::GONE_AFTER
    }

    /// Runs that have been processing for a while without a worker.
    pub(crate) fn lost_runs(&self) -> Vec<(JobId, Run)> {
        if !self.is_settled() {
            return Vec::new();
        }
        let now = Instant::now();
        let held: HashSet<(JobId, Run)> = self.queries.workers.held(now).collect();
        let gone_ms = i64::try_from(heartbeat::GONE_AFTER.as_millis()).unwrap_or(i64::MAX);
        let long_ago = self.now() - gone_ms;
        let out = self.dispatcher.out().filter_map(|id| self.state.job(id));
        out.filter(|job| job.status == Status::Processing)
            .filter(|job| job.history().timeline.last().is_none_or(|step| step.at < long_ago))
            .map(|job| (job.id, job.run))
            .filter(|run| !held.contains(run))
            .collect()
    }
}
