//! Retry by hand: an ended job is queued again, as its next run, with its attempts given back.

use super::{Decision, Facts, Need, record};
use crate::{
    Job, JobId, State, Status,
    command::Retry,
    event::{Event, Revived},
    reply::{Code, Reply},
    time::Millis,
};

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
        if let Some(newer) = self.newer(job) {
            let error = format!("job {id} was superseded: job {newer} of the same batch is live");
            return Ok(Decision::refused(Code::Superseded, error));
        }
        Ok(Decision {
            events: vec![revive(job, now)],
            reply: Reply::Retried { jobs: vec![id], count: 1, left: 0 },
            stale: Vec::new(),
        })
    }

    fn retry_all(&self, facts: &Facts, now: Millis, project: &str) -> Result<Decision, Need> {
        let failed = self.known.projects.get(project).map(|project| &project.failed);
        let kept = failed.into_iter().flatten().filter(|(_, until)| **until > now);
        let ids: Vec<JobId> = kept.map(|(id, _)| *id).collect();
        let unread = |id: &&JobId| self.job(**id).is_none() && !facts.jobs.contains_key(*id);
        let unknown: Vec<JobId> = ids.iter().filter(unread).copied().collect();
        if !unknown.is_empty() {
            return Err(Need::Jobs(unknown));
        }
        let mut jobs = Vec::with_capacity(ids.len());
        for id in &ids {
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
        let live = self.known.projects.get(&job.project)?.live.get(&job.batch)?;
        live.iter().copied().find(|id| self.job(*id).is_some_and(|other| other.order > job.order))
    }
}

fn revive(job: &Job, now: Millis) -> Event {
    let was = job.status;
    let mut job = job.clone();
    job.status = Status::Queued;
    job.run += 1;
    job.attempts = 0;
    job.take_backs = 0;
    job.closed = false;
    job.queued_at = now;
    job.run_at = None;
    job.started_at = None;
    job.completed_at = None;
    job.error = None;
    job.superseded_by = None;
    job.worker = None;
    job.step(now);
    Event::Revived(Box::new(Revived { was, job }))
}
