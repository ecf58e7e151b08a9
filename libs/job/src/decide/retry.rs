//! Retry by hand: an ended job is queued again, as its next run, with its attempts given back.

use super::{Decision, Facts, Need, record};
use crate::{
    Job, JobId, State, Status,
    command::Retry,
    event::{Event, Revived},
    reply::{Code, Reply},
    time::Millis,
};

/// Jobs that are read at a time for a retry of all.
const READ_JOBS_MAX: usize = 200;
/// Bytes of jobs that one request queues again: they go through memory.
const RETRY_BYTES_MAX: usize = 128 << 20;

/// How many ids of retried jobs a reply names; their number is always exact.
const REPLY_JOBS_MAX: usize = 10_000;

impl State {
    pub(super) fn decide_retry(
        &self,
        facts: &Facts,
        now: Millis,
        ask: &Retry,
    ) -> Result<Decision, Need> {
        if let Some(decision) = self.answered(facts, ask.idempotency)? {
            return Ok(decision);
        }
        let mut decision = match ask.job {
            Some(id) => self.retry_one(facts, now, &ask.project, id)?,
            None => self.retry_all(facts, now, &ask.project)?,
        };
        if !matches!(decision.reply, Reply::Refused { .. }) {
            record(&mut decision, ask.idempotency, now);
        }
        Ok(decision)
    }

    fn retry_one(
        &self,
        facts: &Facts,
        now: Millis,
        project: &str,
        id: JobId,
    ) -> Result<Decision, Need> {
        let job = self.look_up(facts, id)?.filter(|job| *job.project == *project);
        let Some(job) = job else {
            let error = format!("no job {id} in project {project:?}");
            return Ok(Decision::refused(Code::JobNotFound, error));
        };
        if !matches!(job.status, Status::Failed | Status::Canceled) {
            let error = format!("job {id} is {}, not failed or canceled", job.status.name());
            return Ok(Decision::refused(Code::JobNotRetryable, error));
        }
        if let Some(newer) = self.newer(&job) {
            let error = format!("job {id} was superseded: job {newer} of the same batch is live");
            return Ok(Decision::refused(Code::Superseded, error));
        }
        Ok(Decision {
            events: vec![revive(&job, now)],
            reply: Reply::Retried { jobs: vec![id], count: 1, left: 0 },
            stale: Vec::new(),
        })
    }

    fn retry_all(&self, facts: &Facts, now: Millis, project: &str) -> Result<Decision, Need> {
        let failed = self.known.projects.get(project).map(|project| &project.failed);
        let kept = failed.into_iter().flatten().filter(|(_, until)| **until > now);
        let ids: Vec<JobId> = kept.map(|(id, _)| *id).collect();
        let unread = |id: &&JobId| !self.has(**id) && !facts.jobs.contains_key(*id);
        let unknown: Vec<JobId> = ids.iter().filter(unread).take(READ_JOBS_MAX).copied().collect();
        let read_bytes: usize = facts.jobs.values().flatten().map(|job| bytes(job)).sum();
        if !unknown.is_empty() && read_bytes < RETRY_BYTES_MAX {
            return Err(Need::Jobs(unknown));
        }
        let mut jobs = Vec::new();
        // What is unread now is too much for one request.
        for id in ids.iter().filter(|id| !unread(id)) {
            let job = self.look_up(facts, *id)?;
            jobs.extend(
                job.filter(|job| job.status == Status::Failed && self.newer(job).is_none()),
            );
        }
        jobs.sort_unstable_by_key(|job| job.order);
        let left = (ids.len() - jobs.len()) as u64;
        let named = jobs.iter().take(REPLY_JOBS_MAX).map(|job| job.id).collect();
        let count = self.known.partial.unwrap_or_default().jobs + jobs.len() as u64;
        Ok(Decision {
            events: jobs.iter().map(|job| revive(job, now)).collect(),
            reply: Reply::Retried { jobs: named, count, left },
            stale: Vec::new(),
        })
    }

    /// A live job of the same batch that is younger.
    fn newer(&self, job: &Job) -> Option<JobId> {
        let mut live = self.live_of(&job.project, &job.batch);
        live.find(|other| other.order > job.order).map(|other| other.id)
    }
}

fn bytes(job: &Job) -> usize {
    let result = job.past().result.as_ref().map_or(0, |result| result.get().len());
    size_of::<Job>() + job.data.get().len() + result
}

fn revive(job: &Job, now: Millis) -> Event {
    let was = job.status;
    let mut job = job.clone();
    job.status = Status::Queued;
    job.run += 1;
    job.attempts = 0;
    job.queued_at = now;
    job.run_at = None;
    let past = job.past_mut();
    past.take_backs = 0;
    past.deferrals = 0;
    past.deferred_since = None;
    past.closed = false;
    past.progress = None;
    past.result = None;
    past.stored = None;
    past.started_at = None;
    past.completed_at = None;
    past.error = None;
    past.superseded_by = None;
    past.worker = None;
    job.step(now, None);
    Event::Revived(Box::new(Revived { was, job }))
}
