//! What an operator may set of the rules.

use crate::{Backoff, Bands, Limits};

/// The settings that decisions are made with. What a decision took from them is written into
/// its events, so that a replay needs none of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which priorities belong to which class.
    pub bands: Bands,
    /// Attempts of a job whose request sets no number.
    pub max_attempts: u32,
    /// How long a failed attempt waits for the next.
    pub backoff: Backoff,
    /// How long a job may be deferred in a row before it fails, in ms.
    pub max_deferral_ms: i64,
    /// How long a job is kept after it ended, in ms.
    pub retention_ms: i64,
    /// The share of dispatches that each class below the first one with queued jobs keeps, in percent.
    pub lower_share_percent: u8,
    /// Limits of a project that sets none.
    pub limits: Limits,
    /// The most bytes of the settings and schedules of all projects.
    pub settings_bytes_max: u64,
    /// The most bytes of events in one message of EVENTS, unless events that belong together have
    /// more: half of the broker's `max_payload`.
    pub message_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bands: Bands::default(),
            max_attempts: 3,
            backoff: Backoff::default(),
            max_deferral_ms: 24 * 3_600 * 1_000,
            retention_ms: 7 * 24 * 3_600 * 1_000,
            lower_share_percent: 10,
            limits: Limits::default(),
            settings_bytes_max: 128_000_000,
            message_bytes_max: 4_000_000,
        }
    }
}
