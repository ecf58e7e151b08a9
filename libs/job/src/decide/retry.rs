//! Retry by hand: an ended job is queued again, as its next run, with its attempts given back.

use super::{Decision, Lookups, Missing, record};
use crate::{
    Job, JobId, State, Status,
    bulk::BulkAction,
    command::Retry,
    event::{Event, Retried},
    internal,
    reply::{Code, Reply},
    time::Millis,
};

impl State {
    pub(super) fn decide_retry(
        &self,
        lookups: &Lookups,
        now: Millis,
        request: &Retry,
    ) -> Result<Decision, Missing> {
        if let Some(decision) = self.answered(lookups, request.idempotency)? {
            return Ok(decision);
        }
        let Some(id) = request.job else {
            let action = match request.filter.is_all() {
                true => BulkAction::RetryFailed,
                false => BulkAction::RetryMatching(request.filter.clone()),
            };
            let project = match request.deliveries {
                true => internal::project_of(&request.project),
                false => request.project.clone(),
            };
            return Ok(self.decide_bulk(now, &project, action, request.idempotency));
        };
        let mut decision = self.retry_one(lookups, now, &request.project, id)?;
        if !matches!(decision.reply, Reply::Refused { .. }) {
            record(&mut decision, request.idempotency, now);
        }
        Ok(decision)
    }

    fn retry_one(
        &self,
        lookups: &Lookups,
        now: Millis,
        project: &str,
        id: JobId,
    ) -> Result<Decision, Missing> {
        let job = self.look_up(lookups, id)?.filter(|job| *job.project == *project);
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
            events: vec![retried(&job, now)],
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
pub(crate) fn retried(job: &Job, now: Millis) -> Event {
    let was = job.status;
    let mut job = job.clone();
    job.status = Status::Queued;
    job.run += 1;
    job.attempts = 0;
    job.queued_at = now;
    job.run_at = None;
    job.expires_at = None;
    let history = job.history_mut();
    history.take_backs = 0;
    history.deferrals = 0;
    history.deferred_since = None;
    history.closed = false;
    history.progress = None;
    history.result = None;
    history.stored = None;
    history.started_at = None;
    history.completed_at = None;
    history.error = None;
    history.superseded_by = None;
    history.worker = None;
    job.step(now, None);
    Event::Retried(Box::new(Retried { was, job }))
}
