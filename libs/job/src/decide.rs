//! Decisions: what a command makes happen. Nothing here changes anything; the events do.

mod bulk;
mod cancel;
mod enqueue;
mod expiry;
mod operation;
mod project;
mod quota;
mod retry;
mod run;
mod schedule;
mod update;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub use bulk::{SLICE_BYTES_MAX, Slice};
use retry::retried;

use crate::{
    Config, Digest, Id, Idempotency, IdempotencyRecord, Job, JobId, JobLabels, Run, State,
    command::Command,
    event::{Ended, Event, Transition},
    reply::{Code, Reply},
    time::Millis,
};

/// What a command makes happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The events, in order.
    pub events: Vec<Event>,
    /// The reply to the command. [`Reply::Noted`] if a bulk operation starts: the reply follows with its last
    /// slice.
    pub reply: Reply,
    /// Runs whose work is no longer needed; their processors are asked to stop.
    pub stale: Vec<(JobId, Run)>,
}

impl Decision {
    fn noted() -> Self {
        Self::reply(Reply::Noted)
    }

    fn reply(reply: Reply) -> Self {
        Self { events: Vec::new(), reply, stale: Vec::new() }
    }

    fn key_reused() -> Self {
        let error = "this Idempotency-Key was used for another request; use a new key";
        Self::refused(Code::IdempotencyKeyReused, error.to_owned())
    }

    fn refused(code: Code, error: String) -> Self {
        Self::reply(Reply::Refused { code, error, retry_after_s: None })
    }
}

/// What memory does not hold and was read for a decision.
#[derive(Clone, Debug, Default)]
pub struct Lookups {
    /// Terminal jobs, from the bucket; `None` if it has none.
    pub jobs: HashMap<JobId, Option<Arc<Job>>>,
    /// Records of idempotency keys, from the bucket; `None` if it has none.
    pub answers: HashMap<Digest, Option<IdempotencyRecord>>,
    /// Runs that a live processor says it works on.
    pub held: HashSet<(JobId, Run)>,
    /// True until enough heartbeats have been received to treat a missing run as lost.
    pub unsettled: bool,
}

/// What must be read before a command can be decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Missing {
    /// These jobs.
    Jobs(Vec<JobId>),
    /// The answer under this key.
    Reply(Digest),
}

impl State {
    /// Decides a command at `now`, which is not before the last event.
    ///
    /// # Errors
    /// What has to be read first: memory does not hold it, and that says nothing of its absence.
    pub fn decide(
        &self,
        config: &Config,
        lookups: &Lookups,
        now: Millis,
        command: &Command,
    ) -> Result<Decision, Missing> {
        match command {
            Command::Enqueue(ask) => self.decide_enqueue(config, lookups, now, ask),
            Command::Cancel(ask) => self.decide_cancel(lookups, now, ask),
            Command::Retry(ask) => self.decide_retry(lookups, now, ask),
            Command::Project(ask) => Ok(self.decide_project(config, ask)),
            Command::Schedule(ask) => Ok(self.decide_schedule(config, now, ask)),
            Command::Update(update) => self.decide_update(config, lookups, now, update),
            Command::Operation(command) => self.decide_operation(config, lookups, now, command),
            Command::Started(said) => Ok(self.decide_started(said)),
            Command::Progress(said) => Ok(self.decide_progress(said)),
            Command::Outcome(said) => self.decide_outcome(config, lookups, now, said),
            #[cfg(feature = "next-version")]
            Command::Note(note) => Ok(Decision {
                events: vec![Event::Noted { note: note.note.clone() }],
                ..Decision::noted()
            }),
        }
    }

    /// The reply that was given under an idempotency key, if one was; a refusal where the key
    /// came with another request, also if that is still in progress.
    fn answered(
        &self,
        lookups: &Lookups,
        idempotency: Option<Idempotency>,
    ) -> Result<Option<Decision>, Missing> {
        let before = idempotency.and_then(|own| self.bulk_of_key(own.key)?.idempotency);
        if before.is_some_and(|before| Some(before.request) != idempotency.map(|own| own.request)) {
            return Ok(Some(Decision::key_reused()));
        }
        self.answered_before(lookups, idempotency)
    }

    /// The same, without requests in progress.
    fn answered_before(
        &self,
        lookups: &Lookups,
        idempotency: Option<Idempotency>,
    ) -> Result<Option<Decision>, Missing> {
        let Some(Idempotency { key, request }) = idempotency else { return Ok(None) };
        let answer = match self.answer(key) {
            Some(answer) => answer,
            None => match lookups.answers.get(&key) {
                Some(Some(answer)) => answer,
                Some(None) => return Ok(None),
                None => return Err(Missing::Reply(key)),
            },
        };
        if answer.request == request {
            return Ok(Some(Decision::reply(answer.reply.clone())));
        }
        Ok(Some(Decision::key_reused()))
    }

    /// A job from memory or from what was read.
    fn look_up(&self, lookups: &Lookups, id: JobId) -> Result<Option<Arc<Job>>, Missing> {
        match self.job(id) {
            Some(job) => Ok(Some(job)),
            None => match lookups.jobs.get(&id) {
                Some(read) => Ok(read.clone()),
                None => Err(Missing::Jobs(vec![id])),
            },
        }
    }
}

/// Appends the record of a reply, if the request had an idempotency key.
fn record(decision: &mut Decision, idempotency: Option<Idempotency>, now: Millis) {
    let answer = answer_of(idempotency, &decision.reply, now);
    decision.events.extend(answer.map(|(key, answer)| Event::Answered { key, answer }));
}

/// The record of a reply, if the request had an idempotency key.
fn answer_of(
    idempotency: Option<Idempotency>,
    reply: &Reply,
    now: Millis,
) -> Option<(Digest, Box<IdempotencyRecord>)> {
    let Idempotency { key, request } = idempotency?;
    Some((
        key,
        Box::new(IdempotencyRecord { request, reply: reply.clone(), first_job: None, at: now }),
    ))
}

/// The event that cancels a live job.
fn canceled(job: &Job, error: Id, superseded_by: Option<JobId>) -> Event {
    Event::Ended(Box::new(Ended {
        job: job.id,
        labels: JobLabels::job(job),
        run: job.run,
        worker: job.history().worker.clone(),
        started_at: job.history().started_at,
        finished_at: None,
        usage: crate::Usage::default(),
        doubtful: false,
        error: Some(error),
        to: Transition::Canceled { superseded_by },
    }))
}
