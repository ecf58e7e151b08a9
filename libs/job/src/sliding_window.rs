//! What happened in the last 60 s: starts that hold a permit, tokens that were counted.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// How long an amount counts, in ms.
const LENGTH_MS: i64 = 60_000;
/// Amounts closer than this are kept as one, which counts from the later end on: a permit may
/// come back this much later than it could, never earlier.
const STEP_MS: i64 = 100;

/// Amounts of the last 60 s. At most 601 entries, however much happens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlidingWindow(VecDeque<(Millis, u64)>);

impl SlidingWindow {
    /// Counts an amount at `at`, which is not before the last one.
    pub fn add(&mut self, at: Millis, amount: u64) {
        self.forget(at);
        let step = at.div_euclid(STEP_MS) * STEP_MS + STEP_MS;
        match self.0.back_mut() {
            Some((last, sum)) if *last >= step => *sum = sum.saturating_add(amount),
            _ => self.0.push_back((step, amount)),
        }
    }

    /// The sum over the 60 s before `now`.
    pub fn sum(&self, now: Millis) -> u64 {
        let counted = self.0.iter().filter(|(at, _)| at + LENGTH_MS > now);
        counted.fold(0, |sum: u64, (_, amount)| sum.saturating_add(*amount))
    }

    /// When the sum will have sunk below `limit`, if nothing is added; `None` where nothing that
    /// is counted here has to go for that.
    pub fn below_at(&self, limit: u64, now: Millis) -> Option<Millis> {
        let mut sum = self.sum(now);
        let counted = self.0.iter().filter(|(at, _)| at + LENGTH_MS > now);
        let mut until = None;
        for (at, amount) in counted {
            if sum < limit {
                break;
            }
            sum = sum.saturating_sub(*amount);
            until = Some(at + LENGTH_MS);
        }
        until
    }

    /// When the sum sinks next, if nothing is added.
    pub fn next_less(&self, now: Millis) -> Option<Millis> {
        self.0.iter().map(|(at, _)| at + LENGTH_MS).find(|until| *until > now)
    }

    /// Removes what no longer counts.
    pub fn forget(&mut self, now: Millis) {
        while self.0.front().is_some_and(|(at, _)| at + LENGTH_MS <= now) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_counts_for_a_minute_and_never_less() {
        let mut minute = SlidingWindow::default();
        for at in [1_000, 1_050, 1_210, 30_000] {
            minute.add(at, 1);
        }
        assert_eq!(minute.sum(30_000), 4);
        assert_eq!(minute.sum(61_099), 4);
        assert_eq!(minute.sum(61_100), 2, "two within one step go together");
        assert_eq!(minute.below_at(4, 30_000), Some(61_100));
        assert_eq!(minute.below_at(2, 30_000), Some(61_300));
        assert_eq!(minute.below_at(5, 30_000), None);
        assert_eq!(minute.below_at(1, 30_000), Some(90_100));
    }

    #[test]
    fn memory_is_bounded() {
        let mut minute = SlidingWindow::default();
        for at in 0..200_000 {
            minute.add(at, 1);
        }
        assert!(minute.0.len() <= 601);
        assert!(minute.sum(200_000) >= 60_000);
    }
}
