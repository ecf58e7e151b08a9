//! The expiry of jobs that waited for too long.

use super::canceled;
use crate::{
    Job, State,
    event::Event,
    time::{Millis, rfc3339},
};

/// Jobs that expire in one transaction, at most.
const EXPIRED_MAX: usize = 1_000;

impl State {
    /// The events that end queued jobs which were to start before now, a bounded number.
    pub fn decide_expired(&self, now: Millis) -> Vec<Event> {
        let due = self.expiries.due(now).take(EXPIRED_MAX).filter_map(|id| self.job(id));
        due.map(|job| canceled(&job, error(&job).into(), None)).collect()
    }
}

/// When a job expires that may start from `from` on and waits for `seconds` at most.
pub(super) fn expiry(from: Millis, seconds: u32) -> Millis {
    from.saturating_add(i64::from(seconds) * 1_000)
}

fn error(job: &Job) -> String {
    let at = rfc3339(job.expires_at.unwrap_or_default());
    format!("expired: run {} had not started by {at}", job.run)
}
