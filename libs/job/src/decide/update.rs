//! A change of one queued job.

use super::{Decision, Lookups, Missing, expiry::expiry};
use crate::{
    Config, State, Status,
    command::Update,
    event::{Event, JobScope},
    reply::{Code, Reply},
    time::{Millis, rfc3339},
};

impl State {
    pub(super) fn decide_update(
        &self,
        config: &Config,
        lookups: &Lookups,
        now: Millis,
        update: &Update,
    ) -> Result<Decision, Missing> {
        let id = update.job;
        let job = self.look_up(lookups, id)?.filter(|job| job.project == update.project);
        let Some(job) = job else {
            let error = format!("no job {id} in project {:?}", update.project);
            return Ok(Decision::refused(Code::JobNotFound, error));
        };
        if job.status != Status::Queued {
            let error = format!("job {id} is {}, not queued", job.status.name());
            return Ok(Decision::refused(Code::JobNotQueued, error));
        }
        let priority = update.priority.unwrap_or(job.priority);
        let run_at = update.run_at.or(job.run_at).filter(|at| *at > now);
        let starts_from = run_at.unwrap_or(now);
        let expires_at = match update.expires_in {
            None => job.expires_at,
            Some(0) => None,
            Some(seconds) => Some(expiry(starts_from, seconds)),
        };
        if update.run_at.is_some()
            && let Some(at) = expires_at.filter(|at| *at <= starts_from)
        {
            let at = rfc3339(at);
            let error = format!("job {id} expires at {at}, before runAt; set expiresIn too");
            return Ok(Decision::refused(Code::ExpiresBeforeRunAt, error));
        }
        let mut events = Vec::new();
        if (priority, run_at, expires_at) != (job.priority, job.run_at, job.expires_at) {
            let of = JobScope { project: job.project.clone(), batch: job.batch.clone() };
            let priority_class = config.bands.class(priority);
            events.push(Event::Updated {
                job: id,
                of,
                priority,
                priority_class,
                run_at,
                expires_at,
            });
        }
        Ok(Decision { events, reply: Reply::Updated, stale: Vec::new() })
    }
}
