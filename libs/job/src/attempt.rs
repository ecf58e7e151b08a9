//! Attempts: how long to wait for the next, and when they are used up.

use serde::{Deserialize, Serialize};

use crate::JobId;

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backoff {
    /// The wait after the first failure, in ms.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 604_800_000))]
    pub base_ms: i64,
    /// What each further failure multiplies it with.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100))]
    pub factor: f64,
    /// The longest wait, in ms.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 604_800_000))]
    pub cap_ms: i64,
    /// How far a wait is spread to either side, from 0 to 1.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1))]
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base_ms: 1_000, factor: 2.0, cap_ms: 300_000, jitter: 0.2 }
    }
}

impl Backoff {
    /// The wait after the failure of `attempt` (from 1), in ms. The jitter comes from the job
    /// and the attempt, so that the same history always gives the same times.
    pub fn wait_ms(&self, job: JobId, attempt: u32) -> i64 {
        let exponent = i32::try_from(attempt.saturating_sub(1).min(64)).unwrap_or(64);
        let plain = (self.base_ms as f64 * self.factor.powi(exponent)).min(self.cap_ms as f64);
        (plain * (1.0 + self.jitter * spread(job, attempt))).max(0.0) as i64
    }
}

/// A number from -1 to 1 that looks random and depends on nothing but its arguments.
fn spread(job: JobId, attempt: u32) -> f64 {
    let (high, low) = job.as_u64_pair();
    let mut x = high ^ low.rotate_left(32) ^ (u64::from(attempt) << 48);
    // The finisher of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_stay_within_the_jitter() {
        let backoff = Backoff { base_ms: 1_000, factor: 2.0, cap_ms: 60_000, jitter: 0.2 };
        let job = JobId::from_u128(7);
        for (attempt, plain) in [(1, 1_000), (2, 2_000), (5, 16_000), (7, 60_000), (4_000, 60_000)]
        {
            let wait = backoff.wait_ms(job, attempt);
            assert!((plain * 8 / 10..=plain * 12 / 10).contains(&wait), "{attempt}: {wait}");
        }
        assert_eq!(backoff.wait_ms(job, 3), backoff.wait_ms(job, 3));
        assert_ne!(backoff.wait_ms(job, 3), backoff.wait_ms(JobId::from_u128(8), 3));
    }
}
