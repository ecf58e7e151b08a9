//! Internal projects: they hold the mesh's own jobs, the deliveries of webhooks.

use crate::Id;

/// The prefix of their names. No request can name a project with a control character.
const PREFIX: &str = "\u{1}webhook:";
/// How long a terminal internal job is kept, in ms: an hour.
pub(crate) const RETENTION_MS: i64 = 3_600_000;

/// How long one that failed is kept, in ms: three days, in which it can be retried.
pub(crate) const FAILED_RETENTION_MS: i64 = 3 * 24 * 3_600_000;

/// Failed jobs of an internal project that are kept for so long. Without a bound, one receiver that refuses everything
/// would fill the bucket.
pub(crate) const FAILED_MAX: usize = 10_000;

/// The internal project that holds the deliveries of a user's project.
pub fn project_of(project: &str) -> Id {
    format!("{PREFIX}{project}").into()
}

/// True for an internal project.
pub fn is_internal(project: &str) -> bool {
    project.starts_with(PREFIX)
}

/// The project whose deliveries this internal project holds; `None` for a user's project.
pub fn receiver_of(project: &str) -> Option<&str> {
    project.strip_prefix(PREFIX)
}
