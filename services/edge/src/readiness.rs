//! What the last readiness probe found.

use std::time::Instant;

use crate::view::Health;

/// What probes share: they need no key, and each check asks all services.
#[derive(Default)]
pub(crate) struct Readiness {
    /// The last result.
    pub checked: Option<(Instant, Health)>,
    /// When a leading state service last answered, and how many runs its processors then had room for.
    pub leader: Option<(Instant, u64)>,
}
