//! When which queued jobs expire. It is derived from the jobs: a restart rebuilds it.

use std::collections::BTreeSet;

use crate::{Job, JobId, time::Millis};

/// The queued jobs that expire, by time.
#[derive(Debug, Default)]
pub(crate) struct Expiries(BTreeSet<(Millis, JobId)>);

impl Expiries {
    /// Adds a queued job, if it expires.
    pub fn insert(&mut self, job: &Job) {
        self.0.extend(job.expires_at.map(|at| (at, job.id)));
    }

    /// Removes a job.
    pub fn remove(&mut self, job: &Job) {
        if let Some(at) = job.expires_at {
            self.0.remove(&(at, job.id));
        }
    }

    /// When the next job expires.
    pub fn next(&self) -> Option<Millis> {
        self.0.first().map(|(at, _)| *at)
    }

    /// The jobs that have expired by `now`, the earliest first.
    pub fn due(&self, now: Millis) -> impl Iterator<Item = JobId> {
        self.0.iter().take_while(move |(at, _)| *at <= now).map(|(_, id)| *id)
    }
}
