//! How much work waits that could start now: what the number of processors should follow.

use crate::{
    ByClass, Config, Limits, PriorityClass, State, internal, snapshot::Project, time::Millis,
};

/// Jobs of each class that are looked at for the one that is ready for longest.
const LOOK_JOBS_MAX: usize = 100;

/// The work of all projects that processors could do now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Queued jobs that could start now, if slots were free: those whose time has come, within the limits of
    /// their projects.
    pub ready: u64,
    /// Running jobs.
    pub running: u64,
    /// Since when the longest waiting of the ready jobs has been ready, by class. Of a project, the first jobs of each
    /// priority are looked at.
    pub oldest: ByClass<Option<Millis>>,
}

impl State {
    /// The work that could be done at `now`.
    pub fn demand(&mut self, config: &Config, now: Millis) -> Demand {
        self.wake(now);
        let mut demand = Demand::default();
        let mut oldest = ByClass::from_fn(|_| Vec::new());
        for (id, project) in &self.persisted.projects {
            if internal::is_internal(id) {
                continue;
            }
            let running: u64 = project.counts.processing.iter().sum();
            demand.running += running;
            let queued: u64 = project.counts.queued.iter().sum();
            let waiting = queued.saturating_sub(self.ready.scheduled(Some(id)));
            if waiting == 0 {
                continue;
            }
            let startable = project.startable(&project.settings.limits(&config.limits), now);
            let ready = waiting.min(startable);
            demand.ready += ready;
            if ready == 0 {
                continue;
            }
            for class in PriorityClass::ALL {
                oldest[class].extend(self.ready.oldest(class, id));
            }
        }
        demand.oldest = oldest.map(|mut ids| {
            ids.sort_unstable();
            let jobs = ids.into_iter().take(LOOK_JOBS_MAX).filter_map(|(_, id)| self.job(id));
            // It was ready since it became queued, or since its time came.
            jobs.map(|job| job.queued_at.max(job.run_at.unwrap_or(0))).min()
        });
        demand
    }
}

impl Project {
    /// How many further runs its limits let start at `now`.
    fn startable(&self, limits: &Limits, now: Millis) -> u64 {
        let running: u64 = self.counts.processing.iter().sum();
        let is_deferred = self.deferred_until.is_some_and(|until| now < until || running > 0);
        let tokens = limits.tokens_per_minute;
        if self.settings.paused || is_deferred || (tokens > 0 && self.tokens.sum(now) >= tokens) {
            return 0;
        }
        let left = |limit: u64, used: u64| match limit {
            0 => u64::MAX,
            limit => limit.saturating_sub(used),
        };
        let slots = left(u64::from(limits.max_concurrency), running);
        let permits = left(u64::from(limits.requests_per_minute), self.starts.sum(now));
        match self.deferred_until {
            // One run finds out whether the work goes on.
            Some(_) => slots.min(permits).min(1),
            None => slots.min(permits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        JobId, Lookups, Patch,
        command::{Command, Enqueue, NewJob, Project as SetProject},
        event::Batch,
    };

    fn run(state: &mut State, at: Millis, command: Command) {
        let decision = state.decide(&Config::default(), &Lookups::default(), at, &command);
        let events = decision.expect("nothing is missing").events;
        let sequence = state.position().sequence + 1;
        state.apply_batch(sequence, sequence, &Batch { at, commands: Vec::new(), events });
    }

    fn enqueue(
        state: &mut State,
        at: Millis,
        project: &str,
        priority: u16,
        run_at: Option<Millis>,
    ) {
        let id = JobId::from_u128(u128::from(state.position().sequence) + 1);
        let jobs = vec![NewJob::new(id, id.to_string().into())];
        let new = Enqueue { priority, run_at, ..Enqueue::new(project.into(), jobs) };
        run(state, at, Command::Enqueue(new));
    }

    #[test]
    fn ready_work_is_what_could_start_within_the_limits() {
        let mut state = State::new(1_000_000);
        let set = |state: &mut State, project: &str, change: Patch| {
            let project = SetProject { project: project.into(), change };
            run(state, 1, Command::Project(project));
        };
        let limit = |limit| Patch { max_concurrency: Some(Some(limit)), ..Patch::default() };
        set(&mut state, "limited", limit(2));
        set(&mut state, "paused", Patch { paused: Some(Some(true)), ..Patch::default() });
        for n in 0..3 {
            enqueue(&mut state, 100 + n, "limited", 10, None);
            enqueue(&mut state, 50, "paused", 10, None);
            enqueue(&mut state, 200 + n, "free", 0, None);
            enqueue(&mut state, 300, "free", 0, Some(5_000));
        }
        let demand = state.demand(&Config::default(), 1_000);
        assert_eq!((demand.ready, demand.running), (5, 0));
        let oldest = demand.oldest;
        assert_eq!(oldest[PriorityClass::High], Some(200));
        assert_eq!(oldest[PriorityClass::Normal], Some(100), "the paused project is not counted");
        assert_eq!(oldest[PriorityClass::Low], None);
        let demand = state.demand(&Config::default(), 5_000);
        assert_eq!(demand.ready, 8, "the time of three more has come");
        // A job that became ready late has not waited since it was enqueued.
        enqueue(&mut state, 5_000, "later", 900, Some(6_000));
        let demand = state.demand(&Config::default(), 7_000);
        assert_eq!(demand.oldest[PriorityClass::Low], Some(6_000));
    }
}
