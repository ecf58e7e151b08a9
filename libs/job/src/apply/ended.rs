//! The ends of runs, in time and late.

use crate::{
    Job, Position, RequeueReason, State,
    delivery::Receiver,
    event::{Ended, LateRun, Requeued, Transition},
    internal,
    time::Millis,
};

/// How long one deferred run keeps the others of its project from starting, in ms. After that one run
/// at a time finds out whether the work goes on.
const DEFERRAL_MS_MAX: i64 = 60_000;

impl State {
    pub(super) fn ended(&mut self, at: Millis, position: Position, ended: &Ended) {
        self.count_tokens(at, &ended.labels.project, &ended.usage);
        if ended.doubtful {
            let project = self.persisted.projects.entry(ended.labels.project.clone()).or_default();
            project.starts.add(at, 1);
        }
        if self.receiver(ended) == Receiver::Full {
            let own = internal::project_of(&ended.labels.project);
            self.persisted.projects.entry(own).or_default().dropped += 1;
        }
        let retention_ms = self.retention_ms(&ended.labels.project);
        self.change(ended.job, position, |job| {
            job.status = ended.to.status();
            let history = job.history_mut();
            history.usage.add(&ended.usage);
            history.closed = ended.finished_at.is_some();
            history.error.clone_from(&ended.error);
            match &ended.to {
                Transition::Queued(again) => requeue(job, at, again),
                Transition::Completed { result, stored } => {
                    history.result.clone_from(result);
                    history.stored = *stored;
                }
                Transition::Failed => {}
                Transition::Canceled { superseded_by } => history.superseded_by = *superseded_by,
            }
            if job.status.is_terminal() {
                job.run_at = None;
                job.history_mut().completed_at = Some(at);
            }
            let why = match &ended.to {
                Transition::Queued(again) => Some(again.why),
                _ => None,
            };
            job.step(at, why);
        });
        self.note_deferral(at, ended);
        if ended.labels.job_type.is_internal() {
            let project = self.persisted.projects.entry(ended.labels.project.clone()).or_default();
            project.failing = ended.error.is_some();
            project.last_error.clone_from(&ended.error);
            let is_kept = project.failed.len() < internal::FAILED_MAX;
            if ended.to == Transition::Failed && is_kept {
                project.failed.insert(ended.job, at + internal::FAILED_RETENTION_MS);
            }
        } else if ended.to == Transition::Failed {
            let project = self.persisted.projects.entry(ended.labels.project.clone()).or_default();
            project.failed.insert(ended.job, at + retention_ms);
        }
    }

    /// Records whether the provider of a project asked to be called later, or works again.
    fn note_deferral(&mut self, at: Millis, ended: &Ended) {
        let Some(project) = self.persisted.projects.get_mut(&ended.labels.project) else { return };
        match &ended.to {
            Transition::Queued(again) if again.why == RequeueReason::Deferred => {
                let until = again.run_at.unwrap_or(at).min(at + DEFERRAL_MS_MAX);
                project.deferred_until = Some(until);
            }
            Transition::Queued(again) if again.why != RequeueReason::Retry => {}
            _ if ended.started_at.is_some() => project.deferred_until = None,
            _ => {}
        }
    }

    /// Notes that the costs of a run which ended late are counted, so that they are not again.
    pub(super) fn late(&mut self, position: Position, late: &LateRun) {
        if let Some(job) = &late.forgotten
            && !self.persisted.jobs.contains(late.job)
        {
            self.insert((**job).clone());
        }
        if let Some(job) = self.persisted.jobs.get_mut(late.job) {
            let closed = job.run == late.run;
            let history = job.history_mut();
            history.usage.add(&late.usage);
            history.closed |= closed;
            job.version = position;
            self.touch(position, late.job);
        }
    }
}

fn requeue(job: &mut Job, at: Millis, again: &Requeued) {
    job.run = again.run;
    job.attempts = again.attempts;
    job.run_at = again.run_at;
    job.queued_at = at;
    let history = job.history_mut();
    history.take_backs = again.take_backs;
    if again.why == RequeueReason::Deferred {
        history.deferrals += 1;
        history.deferred_since.get_or_insert(at);
    } else if again.why == RequeueReason::Retry {
        history.deferrals = 0;
        history.deferred_since = None;
    }
    history.progress = None;
    history.started_at = None;
    history.worker = None;
    history.closed = false;
}
