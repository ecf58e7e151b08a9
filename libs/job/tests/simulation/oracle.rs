//! What must hold, found the slow way from what really happened.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use job::{
    Id, Job, JobId, RequeueReason, Run, Status,
    bulk::Requester,
    command::Command,
    event::{Batch, Event, Transition},
    reply::Reply,
    time::Millis,
};

use super::world::World;

impl World {
    /// Counts the superseded jobs of a message of EVENTS.
    pub fn note_stored(&mut self, batch: &Batch) {
        for event in &batch.events {
            if let Event::Ended(ended) = event
                && let Transition::Canceled { superseded_by: Some(by) } = ended.to
            {
                *self.superseded.entry(by).or_default() += 1;
            }
        }
    }

    /// A reply counts exactly the jobs that its enqueue superseded, whichever leaders processed it.
    pub fn check_reply(&self, requester: &Requester, reply: &Reply) {
        let Reply::Enqueued { canceled } = reply else { return };
        let at: usize = requester.inbox.parse().expect("a number");
        let message = &self.commands[at];
        if message.id.is_some() && self.commands[..at].iter().any(|other| other.id == message.id) {
            return;
        }
        let command = &message.commands[requester.item.as_u128() as usize];
        let Command::Enqueue(enqueue) = command else { panic!("{command:?} enqueued jobs") };
        let superseded = enqueue.jobs.iter().filter_map(|new| self.superseded.get(&new.id));
        assert_eq!(*canceled, superseded.sum::<u64>(), "superseded by {enqueue:?}");
    }

    /// What really runs and really started is within the limits. A run that was canceled does not
    /// count: a processor that received no hint may still stop it.
    pub fn check(&self) {
        for project in &self.projects {
            let limits = self.leader.state.settings(project).limits(&self.config.limits);
            let running = self.processors.iter().flat_map(|processor| &processor.running);
            let running = running.filter(|running| running.project == *project);
            let running = running.filter(|running| self.is_current(running.job, running.run));
            let running = running.count();
            if limits.max_concurrency > 0 {
                assert!(running <= limits.max_concurrency as usize, "{project}: {running} run");
            }
            if limits.requests_per_minute > 0 {
                let starts = self.starts.get(project).map_or(&[][..], Vec::as_slice);
                let lately = starts.iter().rev().take_while(|at| **at + 60_000 > self.now);
                let lately = lately.count();
                let most = limits.requests_per_minute as usize;
                assert!(lately <= most, "{project}: {lately} starts in 60 s, {most} may");
            }
        }
    }

    /// True if a run is the current one of an active job.
    fn is_current(&self, job: JobId, run: Run) -> bool {
        let job = self.leader.state.job(job);
        job.is_some_and(|job| job.run == run && !job.status.is_terminal())
    }

    /// The projects of a class that waited while another was served.
    pub fn note_turn(&mut self, served: &Job, eligible: &HashSet<JobId>) {
        let class = served.priority_class as usize;
        let waiting: HashSet<Id> = eligible
            .iter()
            .filter_map(|id| self.leader.state.job(*id))
            .filter(|job| {
                job.priority_class == served.priority_class && job.project != served.project
            })
            .map(|job| job.project.clone())
            .collect();
        self.passed_over.retain(|(of, project), _| *of != class || waiting.contains(project));
        let weights: u64 = self
            .projects
            .iter()
            .map(|project| u64::from(self.leader.state.settings(project).weight.unwrap_or(1)))
            .sum();
        for project in waiting {
            let passed = self.passed_over.entry((class, project)).or_default();
            *passed += 1;
            assert!(*passed <= 2 * weights, "{:?} starves", self.passed_over);
        }
    }

    /// The jobs that may be dispatched now, found the slow way.
    pub fn eligible(&self, step_ms: i64) -> HashSet<JobId> {
        let mut free: HashMap<&Id, bool> = HashMap::new();
        for project in &self.projects {
            free.insert(project, self.may_start(project, step_ms));
        }
        let queued = self.clients_jobs().filter(|job| job.status == Status::Queued);
        queued
            .filter(|job| job.run_at.is_none_or(|at| at <= self.now))
            .filter(|job| !self.leader.scheduler.is_out(job.id) && free[&job.project])
            .map(|job| job.id)
            .collect()
    }

    /// Whether a project's limits let it start a run, counted from what is in the streams, what
    /// runs, and what the history says of the last minute.
    fn may_start(&self, project: &Id, step_ms: i64) -> bool {
        let state = &self.leader.state;
        let limits = state.settings(project).limits(&self.config.limits);
        if state.settings(project).paused {
            return false;
        }
        let out: Vec<Arc<Job>> = self
            .leader
            .scheduler
            .out()
            .filter_map(|id| state.job(id))
            .filter(|job| job.project == *project)
            .collect();
        if limits.max_concurrency > 0 && out.len() >= limits.max_concurrency as usize {
            return false;
        }
        if let Some(until) = self.deferred_until(project)
            && (self.now < until || !out.is_empty())
        {
            return false;
        }
        let not_started = out.iter().filter(|job| job.status == Status::Queued).count() as u64;
        let (starts, tokens) = self.last_minute(project, 60_000 + step_ms);
        let requests = u64::from(limits.requests_per_minute);
        (requests == 0 || not_started + starts < requests)
            && (limits.tokens_per_minute == 0 || tokens < limits.tokens_per_minute)
    }

    /// Until when the last run of a project that came to its own end keeps the others from starting.
    fn deferred_until(&self, project: &Id) -> Option<Millis> {
        let ended = self.history.iter().flatten().rev().flat_map(|(_, batch)| {
            batch.events.iter().rev().filter_map(move |event| match event {
                Event::Ended(ended) if ended.labels.project == *project => Some((batch.at, ended)),
                _ => None,
            })
        });
        for (at, ended) in ended {
            match &ended.to {
                Transition::Queued(again) if again.why == RequeueReason::Deferred => {
                    return Some(again.run_at.unwrap_or(at).min(at + 60_000));
                }
                Transition::Queued(again) if again.why != RequeueReason::Retry => {}
                _ if ended.started_at.is_some() => return None,
                _ => {}
            }
        }
        None
    }

    /// Starts, known and possible, and tokens of a project in the last `length_ms`.
    fn last_minute(&self, project: &Id, length_ms: i64) -> (u64, u64) {
        let (mut starts, mut tokens) = (0, 0);
        for (_, batch) in self.history.iter().flatten().rev() {
            if batch.at + length_ms <= self.now {
                break;
            }
            for event in &batch.events {
                match event {
                    Event::Started { of, .. } if of.project == *project => starts += 1,
                    Event::Ended(ended) if ended.labels.project == *project => {
                        starts += u64::from(ended.doubtful);
                        tokens += ended.usage.input_tokens;
                    }
                    Event::Refused(refused) => {
                        if let Some(late) = &refused.ended
                            && late.labels.project == *project
                        {
                            tokens += late.usage.input_tokens;
                        }
                    }
                    _ => {}
                }
            }
        }
        (starts, tokens)
    }

    /// Nothing was dispatched: then no slot is free, or nothing may run.
    pub fn check_conserving(&self, eligible: &HashSet<JobId>) {
        let is_known = self.leader.reading.is_none() && !self.leader.is_in_doubt;
        let out = self.leader.scheduler.out().count();
        if is_known && out < self.capacity().total {
            assert!(eligible.is_empty(), "{out} out, and {eligible:?} may run and do not");
        }
    }

    /// Every end of a job of a project with a webhook has one delivery.
    pub fn check_deliveries(&self) {
        for project in &self.projects {
            if self.leader.state.settings(project).webhook.is_none() {
                continue;
            }
            let events = self.history.iter().flatten().flat_map(|(_, batch)| &batch.events);
            let ends = events.filter(|event| match event {
                Event::Ended(ended) => {
                    ended.labels.project == *project && ended.to.status().is_terminal()
                }
                _ => false,
            });
            let pending = self.leader.state.deliveries(project).pending;
            assert_eq!(pending, ends.count() as u64, "deliveries of {project}");
        }
    }
}
