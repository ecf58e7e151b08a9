//! Enqueue and redo: new jobs, which supersede the active jobs of their batches.

use std::collections::HashSet;

use super::{Decision, Lookups, Missing, canceled, expiry::expiry, record};
use crate::{
    Config, JobId, State,
    command::Enqueue,
    event::{Enqueued, Event},
    reply::Reply,
    time::Millis,
};

impl State {
    pub(super) fn decide_enqueue(
        &self,
        config: &Config,
        lookups: &Lookups,
        now: Millis,
        request: &Enqueue,
    ) -> Result<Decision, Missing> {
        if let Some(decision) = self.answered(lookups, request.idempotency)? {
            return Ok(decision);
        }
        // An answer goes before the jobs do, where those took long to end: the ids tell.
        if let (Some(_), [first, .., last] | [first @ last]) = (request.idempotency, &*request.jobs)
            && self.partial().is_none()
            && self.look_up(lookups, first.id)?.is_some()
        {
            return Ok(match self.look_up(lookups, last.id)? {
                Some(_) => Decision::reply(Reply::Enqueued { canceled: 0 }),
                None => Decision::key_reused(),
            });
        }
        // The first events of a command that was cut short by a crash are known already.
        let before = self.persisted.partial.unwrap_or_default().jobs;
        let events = self.enqueue_events(config, now, request);
        // The rest of a command that a crash cut short was accepted with its first events.
        let is_new = self.partial().is_none();
        if is_new && let Err(error) = self.check_quota(config, &request.project, now, &events) {
            return Ok(error.into());
        }
        let is_end = |event: &&Event| matches!(event, Event::Ended(_));
        let canceled = before + events.iter().filter(is_end).count() as u64;
        let reply = Reply::Enqueued { canceled };
        let mut decision = Decision { events, reply, stale: Vec::new() };
        record(&mut decision, request.idempotency, now);
        Ok(decision)
    }

    /// The events that cancel live jobs and make new ones.
    pub(super) fn enqueue_events(
        &self,
        config: &Config,
        now: Millis,
        request: &Enqueue,
    ) -> Vec<Event> {
        let mut events = if request.supersede { self.supersede(request) } else { Vec::new() };
        let settings = self.settings(&request.project);
        let max_attempts = settings.max_attempts.unwrap_or(config.max_attempts);
        let run_at = request.run_at.filter(|at| *at > now);
        let expires_in = request.expires_in.or(settings.expires_in);
        let expires_at = expires_in.map(|seconds| expiry(run_at.unwrap_or(now), seconds));
        let class = config.bands.class(request.priority);
        for new in request.jobs.iter().filter(|new| !self.has(new.id)) {
            events.push(Event::Enqueued(Box::new(Enqueued {
                job: new.id,
                project: request.project.clone(),
                batch: new.batch.clone(),
                job_type: request.job_type,
                priority: request.priority,
                priority_class: class,
                max_attempts: request.max_attempts.unwrap_or(max_attempts),
                own_attempts: request.max_attempts.is_some(),
                retry: request.retry,
                run_at,
                expires_at,
                data: new.data.clone(),
                trace: request.trace,
            })));
        }
        events
    }

    /// The events that cancel the live jobs of the batches that new jobs are for.
    fn supersede(&self, request: &Enqueue) -> Vec<Event> {
        let own: HashSet<JobId> = request.jobs.iter().map(|new| new.id).collect();
        let mut events = Vec::new();
        for new in &request.jobs {
            for old in self.live_of(&request.project, &new.batch) {
                if own.contains(&old.id) {
                    continue;
                }
                let error = format!("superseded by job {}", new.id).into();
                events.push(canceled(&old, error, Some(new.id)));
            }
        }
        events
    }
}
