//! Limits of a project.

use serde::{Deserialize, Serialize};

/// The most schedules of a project: they are listed in one answer.
pub(crate) const SCHEDULES_MAX: u32 = 1_000;

/// Limits of a project; 0 is none, except of schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Jobs that may run at once.
    pub max_concurrency: u32,
    /// Runs that may start in any 60 s.
    pub requests_per_minute: u32,
    /// Tokens in the last 60 s beyond which no run starts.
    pub tokens_per_minute: u64,
    /// Jobs that are queued or running.
    #[serde(default)]
    pub max_active_jobs: u32,
    /// Bytes of the data of these jobs.
    #[serde(default)]
    pub max_active_bytes: u64,
    /// Jobs that may be enqueued in any 60 s.
    #[serde(default)]
    pub enqueues_per_minute: u32,
    /// Schedules.
    #[serde(default = "schedules_max")]
    pub max_schedules: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrency: 0,
            requests_per_minute: 0,
            tokens_per_minute: 0,
            max_active_jobs: 0,
            max_active_bytes: 0,
            enqueues_per_minute: 0,
            max_schedules: schedules_max(),
        }
    }
}

fn schedules_max() -> u32 {
    SCHEDULES_MAX
}
