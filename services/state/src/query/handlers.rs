//! Answers, made from what this replica knows.

use std::{sync::Arc, time::Instant};

use job::{Limits, State, time::Millis};
use nats::{
    heartbeat::WorkerRegistry,
    query::{
        JobAnswer, JobQuery, JobsAnswer, JobsQuery, ProjectAnswer, ProjectQuery, RunsAnswer,
        RunsQuery, SchedulesAnswer, StatsAnswer, StatsQuery,
    },
};

use crate::clock::Clock;

/// The most jobs of one list.
const LISTED_MAX: usize = 1_000;

/// What answers are made from.
pub(crate) struct QueryContext<'a> {
    pub state: &'a mut State,
    pub rules: &'a job::Config,
    pub clock: &'a Clock,
    /// Whether this replica leads, and has renewed the lease recently.
    pub leads: bool,
}

impl QueryContext<'_> {
    fn now(&self) -> Millis {
        self.clock.now(self.state.at())
    }

    pub(super) fn job(&self, query: &JobQuery) -> JobAnswer {
        let job = self.state.job(query.job).map(|job| {
            let max_attempts = self.state.max_attempts(&job);
            let mut job = Arc::unwrap_or_clone(job);
            job.max_attempts = max_attempts;
            job
        });
        JobAnswer { job, through: self.state.through() }
    }

    pub(super) fn stats(&mut self, query: &StatsQuery, workers: &WorkerRegistry) -> StatsAnswer {
        let now = self.now();
        self.state.wake(now);
        let project = query.project.as_deref();
        let limits = project.map_or_else(Limits::default, |project| {
            self.state.settings(project).limits(&self.rules.limits)
        });
        let now = Instant::now();
        StatsAnswer {
            counts: self.state.counts(project),
            scheduled: self.state.scheduled(project),
            processors: workers.live(now).filter(|said| said.takes_jobs()).count() as u64,
            capacity: workers.capacity(now).total as u64,
            limits,
            position: self.state.position(),
        }
    }

    pub(super) fn project(&self, query: &ProjectQuery) -> ProjectAnswer {
        let mut settings = self.state.settings(&query.project).or(self.rules);
        settings.forget_secrets();
        let usage = self.state.usage(&query.project, self.now());
        ProjectAnswer { settings, usage, deliveries: self.state.deliveries(&query.project) }
    }

    pub(super) fn schedules(&self, query: &ProjectQuery) -> SchedulesAnswer {
        let schedules = self.state.schedules(&query.project);
        let schedules = schedules.map(|(name, timed)| (name.clone(), timed.clone())).collect();
        SchedulesAnswer { schedules }
    }

    pub(super) fn jobs(&self, query: &JobsQuery) -> JobsAnswer {
        let limit = query.limit.min(LISTED_MAX);
        let (jobs, next) = self.state.live_page(
            &query.project,
            query.batch.as_ref(),
            query.before,
            limit,
            query.status,
            query.job_type,
        );
        let jobs = jobs.into_iter().map(|job| {
            let max_attempts = self.state.max_attempts(&job);
            let mut job = Arc::unwrap_or_clone(job).without_data();
            job.max_attempts = max_attempts;
            job
        });
        let live = query
            .live
            .iter()
            .copied()
            .filter(|id| self.state.job(*id).is_some_and(|job| !job.status.is_terminal()));
        let (jobs, live) = (jobs.collect(), live.collect());
        JobsAnswer { jobs, next, live, event: self.state.position().sequence }
    }

    /// The runs that a processor found in its stream and may run: those that no worker is known to
    /// have started.
    pub(super) fn claim(&self, query: &RunsQuery, workers: &WorkerRegistry) -> RunsAnswer {
        let now = Instant::now();
        let free = |(job, run): &(job::JobId, job::Run)| {
            let queued = self
                .state
                .job(*job)
                .is_some_and(|job| job.run == *run && job.status == job::Status::Queued);
            let owner_of = workers.owner_of(*job, *run, now);
            queued && owner_of.is_none_or(|owner_of| **owner_of == *query.processor)
        };
        RunsAnswer { runs: query.runs.iter().copied().filter(free).collect() }
    }

    /// The runs that must not go on.
    pub(super) fn not_current(&self, query: &RunsQuery) -> RunsAnswer {
        let stale = |(job, run): &(job::JobId, job::Run)| {
            let current = self.state.job(*job);
            current.is_none_or(|job| job.run != *run || job.status.is_terminal())
        };
        RunsAnswer { runs: query.runs.iter().copied().filter(stale).collect() }
    }
}
