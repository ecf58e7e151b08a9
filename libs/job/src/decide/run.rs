//! Runs: the reports of processors, and runs whose processor is offline.

use super::{Decision, Lookups, Missing};
use crate::{
    Config, Job, JobId, JobLabels, RequeueReason, Run, State, Status,
    command::{End, Outcome, Progress, Started},
    event::{Ended, Event, JobScope, LateRun, Refused, Requeued, Transition},
    time::Millis,
};

/// Take-backs in a row, without a start, after which an attempt counts as used. A job that kills its
/// worker before the start is reported must not be retried without limit.
const TAKE_BACKS_PER_ATTEMPT: u32 = 2;

impl State {
    /// A run started. If it is not the current run, its worker is asked to stop.
    pub(super) fn decide_started(&self, said: &Started) -> Decision {
        let mut decision = Decision::noted();
        match self.job(said.job) {
            Some(job) if job.run == said.run && job.status == Status::Queued => {
                decision.events.push(started(&job, &said.worker, said.at));
            }
            Some(job) if job.run == said.run && job.status == Status::Processing => {}
            _ => decision.stale.push((said.job, said.run)),
        }
        decision
    }

    /// Progress of a run. Reports of a run that is not current are ignored.
    pub(super) fn decide_progress(&self, said: &Progress) -> Decision {
        let mut decision = Decision::noted();
        let current = self.job(said.job).filter(|job| job.run == said.run);
        if let Some(job) = current.filter(|job| job.status == Status::Processing) {
            decision.events.push(Event::Progressed {
                job: job.id,
                of: JobScope { project: job.project.clone(), batch: job.batch.clone() },
                run: job.run,
                progress: said.progress.clone(),
            });
        }
        decision
    }

    pub(super) fn decide_outcome(
        &self,
        config: &Config,
        lookups: &Lookups,
        now: Millis,
        said: &Outcome,
    ) -> Result<Decision, Missing> {
        let job = self.look_up(lookups, said.job)?;
        let current = |job: &&Job| job.run == said.run && !job.status.is_terminal();
        let Some(job) = job.as_deref().filter(current) else {
            let forgotten = job.as_deref().filter(|job| !self.has(job.id));
            return Ok(late(job.as_deref(), forgotten, said));
        };
        let mut decision = Decision::noted();
        if said.end == End::Redelivered {
            // Too early to decide: a started run without a worker is found by the next
            // reconciliation.
            let later = lookups.unsettled && job.status == Status::Processing;
            if !later && !lookups.held.contains(&(said.job, said.run)) {
                decision.events.push(self.take_back(job));
            }
            return Ok(decision);
        }
        // An outcome implies that the run started, whether or not the start was reported.
        let begun_now = job.status == Status::Queued && said.started_at.is_some();
        if begun_now {
            decision.events.push(started(job, &said.worker, said.started_at.unwrap_or(now)));
        }
        let attempts = job.attempts + u32::from(begun_now);
        let to = self.became(config, job, attempts, now, said);
        decision.events.push(ended(job, attempts, said, to));
        Ok(decision)
    }

    /// Requeues or fails a job whose run no online worker has. Does nothing if the run is no longer
    /// current.
    pub fn decide_lost(&self, job: JobId, run: Run) -> Option<Event> {
        let job = self.job(job).filter(|job| job.run == run && !job.status.is_terminal())?;
        Some(self.take_back(&job))
    }

    /// What the job becomes when its current run ends as its worker says.
    fn became(
        &self,
        config: &Config,
        job: &Job,
        attempts: u32,
        now: Millis,
        said: &Outcome,
    ) -> Transition {
        let again = |why, attempts, run_at| {
            Transition::Queued(Requeued { why, run: job.run + 1, attempts, take_backs: 0, run_at })
        };
        let given_back = attempts.saturating_sub(u32::from(said.started_at.is_some()));
        match &said.end {
            End::Done { result, stored } => {
                Transition::Completed { result: result.clone(), stored: *stored }
            }
            End::Retry { after_ms, .. } if attempts < self.max_attempts(job) => {
                let own = job.retry.as_deref().copied();
                let backoff = own.or(self.settings(&job.project).retry).unwrap_or(config.backoff);
                let wait = backoff.wait_ms(job.id, attempts).max(after_ms.unwrap_or(0));
                again(RequeueReason::Retry, attempts, Some(now.saturating_add(wait)))
            }
            End::Retry { .. } | End::Reject { .. } => Transition::Failed,
            End::Deferred { after_ms, .. } => match self.deferred_to(config, job, now, *after_ms) {
                Some(at) => again(RequeueReason::Deferred, given_back, Some(at)),
                None => Transition::Failed,
            },
            // A drain gives the attempt back.
            End::Released | End::Redelivered => again(RequeueReason::Released, given_back, None),
        }
    }

    /// When a deferred run may start again; `None` if its job has been deferred for too long.
    fn deferred_to(
        &self,
        config: &Config,
        job: &Job,
        now: Millis,
        after_ms: Option<i64>,
    ) -> Option<Millis> {
        let settings = self.settings(&job.project);
        let own = settings.max_deferral.map(|seconds| i64::from(seconds) * 1_000);
        let since = job.history().deferred_since.unwrap_or(now);
        if now - since >= own.unwrap_or(config.max_deferral_ms) {
            return None;
        }
        let backoff = job.retry.as_deref().copied().or(settings.retry).unwrap_or(config.backoff);
        let wait = after_ms.unwrap_or_else(|| backoff.wait_ms(job.id, job.history().deferrals + 1));
        Some(now.saturating_add(wait.max(0)))
    }

    /// The event that requeues a job whose worker is offline.
    fn take_back(&self, job: &Job) -> Event {
        let begun = job.status == Status::Processing;
        let Take { attempts, take_backs } = Take::back(job, begun);
        let worker = job.history().worker.as_deref().unwrap_or("its processor");
        let error = if begun {
            format!("worker lost: {worker} went away during run {}", job.run)
        } else {
            format!("worker lost: run {} was dispatched and never started", job.run)
        };
        let to = if attempts >= self.max_attempts(job) {
            Transition::Failed
        } else {
            let (why, run) = (RequeueReason::Lost, job.run + 1);
            Transition::Queued(Requeued { why, run, attempts, take_backs, run_at: None })
        };
        Event::Ended(Box::new(Ended {
            job: job.id,
            labels: JobLabels::job(job),
            run: job.run,
            worker: job.history().worker.clone(),
            started_at: job.history().started_at,
            finished_at: None,
            usage: crate::Usage::default(),
            // The scheduler sets it, which knows whether the run was in flight.
            doubtful: false,
            error: Some(error.into()),
            to,
        }))
    }
}

fn started(job: &Job, worker: &crate::Id, at: Millis) -> Event {
    Event::Started {
        job: job.id,
        of: JobScope { project: job.project.clone(), batch: job.batch.clone() },
        run: job.run,
        worker: worker.clone(),
        at,
    }
}

fn ended(job: &Job, attempts: u32, said: &Outcome, to: Transition) -> Event {
    let error = match &said.end {
        End::Retry { error, .. } | End::Reject { error } => Some(error.clone()),
        End::Deferred { error, .. } if to == Transition::Failed => {
            Some(format!("deferred for too long: {error}").into())
        }
        End::Deferred { error, .. } => Some(error.clone()),
        End::Released => job.history().error.clone(),
        End::Done { .. } | End::Redelivered => None,
    };
    Event::Ended(Box::new(Ended {
        job: job.id,
        labels: JobLabels { attempt: attempts, ..JobLabels::job(job) },
        run: job.run,
        worker: Some(said.worker.clone()),
        started_at: said.started_at,
        finished_at: Some(said.finished_at),
        usage: said.usage.clone(),
        doubtful: false,
        error,
        to,
    }))
}

/// An outcome that comes too late, or twice. What the run cost is counted once.
fn late(job: Option<&Job>, forgotten: Option<&Job>, said: &Outcome) -> Decision {
    let mut decision = Decision::noted();
    let counted = job.is_some_and(|job| job.run == said.run && job.history().closed);
    let ran = said.started_at.is_some();
    if counted || !ran || matches!(said.end, End::Released | End::Redelivered) {
        return decision;
    }
    let reason = match job {
        None => format!("run {} of job {} ended, and the job is unknown", said.run, said.job),
        Some(job) if job.status == Status::Canceled && job.run == said.run => {
            format!("run {} of job {} ended after the job was canceled", said.run, said.job)
        }
        Some(job) => format!(
            "run {} of job {} ended after it was given up; the job is {} at run {}",
            said.run,
            said.job,
            job.status.name(),
            job.run
        ),
    };
    let ended = LateRun {
        job: said.job,
        labels: said.labels.clone(),
        run: said.run,
        worker: said.worker.clone(),
        started_at: said.started_at,
        finished_at: said.finished_at,
        usage: said.usage.clone(),
        forgotten: forgotten.cloned().map(Box::new),
    };
    let refused = Refused { reason: reason.into(), ended: Some(ended) };
    decision.events.push(Event::Refused(Box::new(refused)));
    decision
}

/// What taking a job back from a lost worker does to its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Take {
    /// The attempts that count as started afterwards.
    attempts: u32,
    /// The take-backs in a row afterwards.
    take_backs: u32,
}

impl Take {
    /// Takes `job` back; `begun` is true if its current run is known to have started.
    fn back(job: &Job, begun: bool) -> Self {
        if begun {
            return Self { attempts: job.attempts, take_backs: 0 };
        }
        let take_backs = job.history().take_backs + 1;
        if take_backs < TAKE_BACKS_PER_ATTEMPT {
            return Self { attempts: job.attempts, take_backs };
        }
        Self { attempts: job.attempts + 1, take_backs: 0 }
    }
}
