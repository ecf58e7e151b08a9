//! When a client compares its server with others.

use std::{
    future,
    time::{Duration, Instant},
};

use tokio::time::sleep_until;
use uuid::Uuid;

/// The time between two comparisons with other servers while none is better: at first and at most.
pub(super) const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// When the nearest server is searched for, after a connection was made: first, and again if a server did not answer (at least and
/// at most).
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(2);
pub(super) const RETURN_AFTER: Duration = Duration::from_secs(20);
pub(super) const RETURN_AFTER_MAX: Duration = Duration::from_secs(600);

/// When other servers are compared.
pub(super) struct Plan {
    connected_at: Instant,
    /// When the nearest server is searched for, after the connection was made; `None` if that is done.
    pub nearest_after: Option<Duration>,
    /// No other server was better before this.
    pub not_before: Instant,
    pub backoff: Duration,
}

impl Plan {
    /// For a new connection.
    pub(super) fn new(nearest_after: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { connected_at: now, nearest_after, not_before: now, backoff: BACKOFF }
    }

    /// Completes when the nearest server is searched for.
    pub(super) async fn nearest(&self) {
        match self.nearest_after {
            None => future::pending().await,
            Some(after) => sleep_until((self.connected_at + after).into()).await,
        }
    }

    pub(super) fn compare_later(&mut self) {
        self.not_before = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    pub(super) fn search_later(&mut self) {
        let next = (self.connected_at.elapsed() * 2).clamp(RETURN_AFTER, RETURN_AFTER_MAX);
        self.nearest_after = Some(self.connected_at.elapsed() + next);
    }
}

/// Up to a second, so that not all clients do the same at once.
pub(super) fn jitter() -> Duration {
    Duration::from_millis(u64::from(Uuid::new_v4().as_bytes()[0]) * 4)
}
