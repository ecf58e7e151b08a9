//! The checkpoint of metrics: how far EVENTS is in ClickHouse. Metrics writes it, and the leading state
//! service reads it before it trims EVENTS.

use job::time::Millis;
use serde::{Deserialize, Serialize};

/// The value under [`METRICS_CHECKPOINT`](crate::names::METRICS_CHECKPOINT) in the bucket of leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The first message of EVENTS that is not in ClickHouse for certain.
    pub next: u64,
    /// The last message of the block that is being inserted, which starts at `next`.
    #[serde(default)]
    pub pending: Option<u64>,
    /// When the last message before `next` was written, in ms since 1970.
    #[serde(default)]
    pub at: Millis,
}

impl Checkpoint {
    /// A value that cannot be read: no message has this sequence.
    pub const UNKNOWN: Self = Self { next: 0, pending: None, at: 0 };
}
