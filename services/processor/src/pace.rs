//! How long runs take, and so how many may be pulled ahead of a free slot, and how many may have ended
//! before their outcomes are recorded.
//!
//! A run that was pulled waits here, where no other processor can take it and no job of a higher class
//! can overtake it. A run that has ended is run again if the processor dies before its outcome is on
//! disk. So both are limited to what a slot does within moments.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The last runs that count.
const RUNS: usize = 16;
/// Longer runs are not pulled ahead.
const SHORT: Duration = Duration::from_millis(20);
/// How long a run that was pulled ahead may wait for its slot, and how much work of a slot may wait to be
/// recorded.
const AHEAD: Duration = Duration::from_millis(5);
/// Runs pulled ahead for each slot, at most.
const PER_SLOT_MAX: u128 = 16;
/// Runs pulled ahead where there are fewer slots than that, at most.
const FEW: usize = 64;

/// The durations of the last runs.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<VecDeque<Duration>>);

impl Pace {
    /// Notes how long a run took, or how long one waited in vain for a slot.
    pub fn note(&self, took: Duration) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.truncate(RUNS - 1);
        last.push_front(took);
    }

    /// How many runs may wait for `slots` slots: as many as end within [`AHEAD`] if each takes as long as
    /// the longest of the last ones, but one for each slot if that one was short.
    pub fn ahead(&self, slots: usize) -> usize {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(longest) = last.iter().max() else { return 0 };
        if last.len() < RUNS || *longest > SHORT {
            return 0;
        }
        let per_slot = AHEAD.as_micros() / longest.as_micros().max(1);
        let per_slot = usize::try_from(per_slot.clamp(1, PER_SLOT_MAX)).unwrap_or(1);
        (slots * per_slot).min(most_ahead(slots))
    }

    /// The permits out of [`recording_permits`] that an outcome takes: so many that there are as many
    /// outcomes as slots, and as many more as runs pulled ahead.
    pub fn recording_weight(&self, slots: usize) -> u32 {
        let outcomes = slots + self.ahead(slots);
        u32::try_from(recording_permits(slots) / outcomes.max(1)).unwrap_or(1).max(1)
    }
}

fn most_ahead(slots: usize) -> usize {
    slots.max(FEW)
}

/// The permits of all outcomes that wait to be recorded.
pub(crate) fn recording_permits(slots: usize) -> usize {
    slots + most_ahead(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(durations_ms: impl IntoIterator<Item = u64>) -> Pace {
        let pace = Pace::default();
        durations_ms.into_iter().for_each(|ms| pace.note(Duration::from_millis(ms)));
        pace
    }

    #[test]
    fn only_short_runs_are_pulled_ahead_and_few_of_those_that_are_not_shortest() {
        assert_eq!(pace([]).ahead(8), 0, "nothing is known");
        assert_eq!(pace([0; RUNS - 1]).ahead(8), 0, "little is known");
        assert_eq!(pace([0; RUNS]).ahead(1), 16);
        assert_eq!(pace([0; RUNS]).ahead(8), FEW);
        assert_eq!(pace([0; RUNS]).ahead(256), 256);
        assert_eq!(pace([2; RUNS]).ahead(4), 8);
        assert_eq!(pace([15; RUNS]).ahead(8), 8);
        assert_eq!(pace([21; RUNS]).ahead(8), 0);
    }

    #[test]
    fn as_many_outcomes_as_slots_wait_to_be_recorded_and_more_of_short_runs() {
        let at_once =
            |pace: &Pace, slots| recording_permits(slots) / pace.recording_weight(slots) as usize;
        for slots in [1, 3, 8, 64, 100, 256] {
            assert_eq!(at_once(&pace([1_000; RUNS]), slots), slots);
            assert!(at_once(&pace([0; RUNS]), slots) > slots);
        }
    }

    #[test]
    fn one_long_run_counts_until_sixteen_have_followed() {
        let pace = pace([0; RUNS]);
        pace.note(Duration::from_secs(1));
        (1..RUNS).for_each(|_| pace.note(Duration::ZERO));
        assert_eq!(pace.ahead(1), 0);
        pace.note(Duration::ZERO);
        assert_eq!(pace.ahead(1), 16);
    }
}
