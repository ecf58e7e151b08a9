//! What every component of the leader works on. It has no I/O.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use job::{JobId, Run, Scheduler, State, Status, time::Millis, transaction::Transaction};
use nats::{
    heartbeat::{self, WorkerRegistry},
    run_tokens::RunTokens,
};

use crate::clock::Clock;

/// The state of all jobs, which runs are in flight, and the rules and the clock of decisions.
pub(super) struct Core {
    pub state: State,
    pub scheduler: Scheduler,
    pub rules: job::Config,
    pub clock: Clock,
    pub run_tokens: RunTokens,
    /// Since when heartbeats are received without interruption.
    connected_since: Instant,
}

impl Core {
    pub fn new(state: State, rules: job::Config, clock: Clock, run_tokens: RunTokens) -> Self {
        let scheduler = Scheduler::default();
        let connected_since = Instant::now();
        Self { state, scheduler, rules, clock, run_tokens, connected_since }
    }

    /// The time of decisions.
    pub fn now(&self) -> Millis {
        self.clock.now(self.state.at())
    }

    /// Begins a transaction at the current time.
    pub fn begin(&mut self) -> Transaction<'_> {
        let now = self.now();
        Transaction::begin(&mut self.state, &self.scheduler, &self.rules, now)
    }

    /// Heartbeats may have been missed: only those from here on are complete.
    pub fn reconnected(&mut self) {
        self.connected_since = Instant::now();
    }

    /// True once heartbeats have been received for long enough to be complete.
    pub fn is_settled(&self) -> bool {
        self.connected_since.elapsed() >= heartbeat::GONE_AFTER
    }

    /// Runs that have been processing for a while and that no online processor has.
    pub fn lost_runs(&self, workers: &WorkerRegistry) -> Vec<(JobId, Run)> {
        if !self.is_settled() {
            return Vec::new();
        }
        let held: HashSet<(JobId, Run)> = workers.held(Instant::now()).collect();
        let long_ago = self.now() - millis(heartbeat::GONE_AFTER);
        let in_flight = self.scheduler.out().filter_map(|id| self.state.job(id));
        in_flight
            .filter(|job| job.status == Status::Processing)
            .filter(|job| job.history().timeline.last().is_none_or(|step| step.at < long_ago))
            .map(|job| (job.id, job.run))
            .filter(|run| !held.contains(run))
            .collect()
    }
}

/// A duration in ms, at most the largest number.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// When `at` comes, from `now` on.
pub(super) fn instant_of(at: Millis, now: Millis) -> Instant {
    let left_ms = u64::try_from(at.saturating_sub(now)).unwrap_or(0);
    Instant::now() + Duration::from_millis(left_ms)
}

#[cfg(test)]
impl Core {
    /// A leader with one queued job.
    pub fn with_queued_job(id: JobId) -> Self {
        use job::{
            Lookups,
            command::{Command, Enqueue, NewJob},
        };
        let tokens = RunTokens::new("key", 0);
        let mut core = Self::new(State::new(1_000), job::Config::default(), Clock::start(), tokens);
        let enqueue = Enqueue::new("p".into(), vec![NewJob::new(id, "b".into())]);
        let mut transaction = core.begin();
        let command = Command::Enqueue(enqueue);
        transaction.process(0, &command, None, &Lookups::default()).expect("nothing is missing");
        transaction.end_message(1, None);
        let commit = transaction.commit();
        commit.finish(&mut core.state, &mut core.scheduler);
        core
    }
}
