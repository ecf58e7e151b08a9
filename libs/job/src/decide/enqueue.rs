//! Enqueue and redo: new jobs, in the place of the live ones of their batches.

use std::collections::HashSet;

use super::{Decision, Facts, Need, canceled, record};
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
        facts: &Facts,
        now: Millis,
        ask: &Enqueue,
    ) -> Result<Decision, Need> {
        if let Some(decision) = self.answered(facts, ask.idempotency)? {
            return Ok(decision);
        }
        // An answer goes before the jobs do, where those took long to end: the ids tell.
        if let (Some(_), Some(first)) = (ask.idempotency, ask.jobs.first())
            && self.partial().is_none()
            && self.look_up(facts, first.id)?.is_some()
        {
            return Ok(Decision::reply(Reply::Enqueued { canceled: 0 }));
        }
        // The first events of a command that was cut short by a crash are known already.
        let before = self.known.partial.unwrap_or_default().jobs;
        let events = self.enqueue_events(config, now, ask);
        let is_end = |event: &&Event| matches!(event, Event::Ended(_));
        let canceled = before + events.iter().filter(is_end).count() as u64;
        let reply = Reply::Enqueued { canceled };
        let mut decision = Decision { events, reply, stale: Vec::new() };
        record(&mut decision, ask.idempotency, now);
        Ok(decision)
    }

    /// The events that cancel live jobs and make new ones.
    pub(super) fn enqueue_events(&self, config: &Config, now: Millis, ask: &Enqueue) -> Vec<Event> {
        let mut events = if ask.supersede { self.supersede(ask) } else { Vec::new() };
        let max_attempts = self.settings(&ask.project).max_attempts;
        let max_attempts = max_attempts.unwrap_or(config.max_attempts);
        let class = config.bands.class(ask.priority);
        for new in ask.jobs.iter().filter(|new| self.job(new.id).is_none()) {
            events.push(Event::Enqueued(Box::new(Enqueued {
                job: new.id,
                project: ask.project.clone(),
                batch: new.batch.clone(),
                kind: ask.kind,
                priority: ask.priority,
                class,
                max_attempts: ask.max_attempts.unwrap_or(max_attempts),
                own_attempts: ask.max_attempts.is_some(),
                retry: ask.retry,
                run_at: ask.run_at.filter(|at| *at > now),
                data: new.data.clone(),
            })));
        }
        events
    }

    /// The events that cancel the live jobs of the batches that new jobs are for.
    fn supersede(&self, ask: &Enqueue) -> Vec<Event> {
        let Some(project) = self.known.projects.get(&ask.project) else { return Vec::new() };
        let own: HashSet<JobId> = ask.jobs.iter().map(|new| new.id).collect();
        let mut events = Vec::new();
        for new in &ask.jobs {
            for id in project.live.get(&new.batch).into_iter().flatten() {
                let Some(old) = self.job(*id).filter(|old| !own.contains(&old.id)) else {
                    continue;
                };
                let error = format!("superseded by job {}", new.id).into();
                events.push(canceled(old, error, Some(new.id)));
            }
        }
        events
    }
}
