//! Answers, made from what this replica knows.

use std::{cmp::Reverse, collections::HashSet, sync::Arc, time::Instant};

use job::{
    ActiveFilter, Id, JobId, Limits, ListedProject, State, operation::Operation,
    preview::PreviewSlice, time::Millis,
};
use nats::{
    heartbeat::WorkerRegistry,
    query::{
        DeliveriesAnswer, DeliveriesQuery, DemandAnswer, JobAnswer, JobQuery, JobsAnswer,
        JobsQuery, LeaderAnswer, OperationsAnswer, OperationsQuery, PreviewQuery, ProcessorsAnswer,
        ProjectAnswer, ProjectOrder, ProjectQuery, ProjectSummary, ProjectsAnswer, ProjectsQuery,
        RunsAnswer, RunsQuery, SchedulesAnswer, StatsAnswer, StatsQuery,
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

    pub(super) fn leader(&self, workers: &WorkerRegistry) -> LeaderAnswer {
        let capacity = workers.capacity(Instant::now()).total as u64;
        LeaderAnswer { term: self.state.term(), capacity }
    }

    pub(super) fn project(&self, query: &ProjectQuery) -> ProjectAnswer {
        let mut settings = self.state.settings(&query.project).or(self.rules);
        settings.forget_secrets();
        let usage = self.state.usage(&query.project, self.now());
        ProjectAnswer { settings, usage, deliveries: self.state.deliveries(&query.project) }
    }

    pub(super) fn projects(&mut self, query: &ProjectsQuery) -> ProjectsAnswer {
        let now = self.now();
        self.state.wake(now);
        let only: Option<HashSet<&Id>> = query.projects.as_ref().map(|ids| ids.iter().collect());
        let search = query.search.as_ref().map(|text| text.to_lowercase());
        let matches = |project: &ListedProject<'_>| {
            only.as_ref().is_none_or(|only| only.contains(project.id))
                && search.as_ref().is_none_or(|text| project.id.to_lowercase().contains(text))
        };
        let rank = |project: &ListedProject<'_>| match query.order {
            ProjectOrder::Id => 0,
            ProjectOrder::Queued => project.counts.queued.iter().sum(),
            ProjectOrder::Processing => project.counts.processing.iter().sum(),
            ProjectOrder::Failed => project.counts.failed,
            ProjectOrder::Tokens => self.state.usage(project.id, now).tokens,
        };
        let found = self.state.projects().filter(matches);
        let mut found: Vec<(Reverse<u64>, ListedProject<'_>)> =
            found.map(|project| (Reverse(rank(&project)), project)).collect();
        found.sort_unstable_by(|(rank, project), (other_rank, other)| {
            rank.cmp(other_rank).then_with(|| project.id.cmp(other.id))
        });
        let total = found.len();
        let page = found.into_iter().skip(query.skip).take(query.limit.min(LISTED_MAX));
        let projects = page.map(|(_, project)| ProjectSummary {
            project: project.id.clone(),
            counts: *project.counts,
            scheduled: self.state.scheduled(Some(project.id)),
            active_bytes: project.active_bytes,
            paused: project.settings.paused,
            limits: project.settings.limits(&self.rules.limits),
            usage: self.state.usage(project.id, now),
            schedules: project.schedules,
        });
        ProjectsAnswer { projects: projects.collect(), total }
    }

    pub(super) fn processors(&self, workers: &WorkerRegistry) -> ProcessorsAnswer {
        ProcessorsAnswer { processors: workers.list(Instant::now()) }
    }

    pub(super) fn deliveries(&self, query: &DeliveriesQuery) -> DeliveriesAnswer {
        let DeliveriesQuery { project, is_failed, skip, limit } = query;
        let limit = (*limit).min(LISTED_MAX);
        if !is_failed {
            let (jobs, total) = self.state.pending_deliveries(project, *skip, limit);
            let jobs = jobs.into_iter().map(Arc::unwrap_or_clone).collect();
            return DeliveriesAnswer { jobs, unread: Vec::new(), total };
        }
        let (ids, total) = self.state.failed_deliveries(project, *skip, limit, self.now());
        let (known, unread): (Vec<JobId>, Vec<JobId>) =
            ids.into_iter().partition(|id| self.state.has(*id));
        let jobs = known.into_iter().filter_map(|id| self.state.job(id));
        DeliveriesAnswer { jobs: jobs.map(Arc::unwrap_or_clone).collect(), unread, total }
    }

    pub(super) fn demand(&mut self, workers: &WorkerRegistry) -> DemandAnswer {
        let now = self.now();
        let demand = self.state.demand(self.rules, now);
        let at = Instant::now();
        DemandAnswer {
            ready: demand.ready,
            running: demand.running,
            slots: workers.capacity(at).total,
            processors: workers.live(at).filter(|it| it.takes_jobs()).count(),
            oldest_ready_ms: demand
                .oldest
                .map(|oldest| oldest.map(|at| u64::try_from(now - at).unwrap_or(0))),
        }
    }

    pub(super) fn operations(&self, query: &OperationsQuery) -> OperationsAnswer {
        let visible = self.state.operations().filter(|operation| {
            query.operation.is_none_or(|id| operation.id == id)
                && operation.is_within(query.projects.as_deref())
        });
        let found: Vec<&Operation> = visible.collect();
        let page = found.iter().skip(query.skip).take(query.limit.min(LISTED_MAX));
        let operations = page.map(|operation| (*operation).clone()).collect();
        OperationsAnswer { operations, total: found.len() }
    }

    pub(super) fn preview(&self, query: &PreviewQuery) -> PreviewSlice {
        let PreviewQuery { action, projects, filter, from, samples_max } = query;
        let projects = projects.as_deref();
        self.state.preview(*action, filter, projects, from.as_ref(), *samples_max, self.now())
    }

    pub(super) fn schedules(&self, query: &ProjectQuery) -> SchedulesAnswer {
        let schedules = self.state.schedules(&query.project);
        let schedules = schedules.map(|(name, timed)| (name.clone(), timed.clone())).collect();
        SchedulesAnswer { schedules }
    }

    pub(super) fn jobs(&self, query: &JobsQuery) -> JobsAnswer {
        let limit = query.limit.min(LISTED_MAX);
        let filter = ActiveFilter {
            projects: query.projects.as_deref(),
            batch: query.batch.as_ref(),
            status: query.status,
            job_type: query.job_type,
            processor: query.processor.as_ref(),
        };
        let (jobs, next) = self.state.active_page(&filter, query.before, limit);
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
