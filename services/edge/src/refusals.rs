//! Bounds how many refused changes the audit log has: no client may fill it with them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The refusals of a key that are recorded within a period.
const REFUSALS_MAX: u32 = 100;
const PERIOD: Duration = Duration::from_secs(60);

/// Counts the refusals of each key.
#[derive(Debug, Default)]
pub(crate) struct RecordedRefusals(Mutex<RefusalCounts>);

#[derive(Debug, Default)]
struct RefusalCounts {
    /// Since when they are counted.
    since: Option<Instant>,
    by_key: HashMap<String, u32>,
}

impl RecordedRefusals {
    /// Counts a refusal; false if enough of the same key were recorded lately.
    pub fn admit(&self, key: Option<&str>) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.since.is_none_or(|since| since.elapsed() > PERIOD) {
            *counts = RefusalCounts { since: Some(Instant::now()), by_key: HashMap::new() };
        }
        let count = counts.by_key.entry(key.unwrap_or_default().to_owned()).or_default();
        *count += 1;
        if *count == REFUSALS_MAX + 1 {
            tracing::warn!(
                key.id = key,
                "further refusals of this API key are not recorded for a while"
            );
        }
        *count <= REFUSALS_MAX
    }
}
