//! Retry by hand: an ended job is queued again, as its next run, with its attempts given back.

use super::{Decision, Facts, Need, record};
use crate::{
    Job, JobId, State, Status,
    bulk::BulkAction,
    command::Retry,
    event::{Event, Revived},
    reply::{Code, Reply},
    time::Millis,
};

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
        let Some(id) = ask.job else {
            let action = BulkAction::RetryFailed;
            return Ok(self.decide_bulk(now, &ask.project, action, ask.idempotency));
        };
        let mut decision = self.retry_one(facts, now, &ask.project, id)?;
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

    /// An active job of the same batch that supersedes this one.
    fn newer(&self, job: &Job) -> Option<JobId> {
        let mut jobs = self.superseding(&job.project, &job.batch);
        jobs.find(|other| other.order > job.order).map(|other| other.id)
    }
}

/// The event that queues an ended job again.
pub(crate) fn revive(job: &Job, now: Millis) -> Event {
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
