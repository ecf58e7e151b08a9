//! How many runs are pulled before a slot is free, and how many outcomes may wait to be recorded.
//!
//! A prefetched run waits here: no other processor can take it, and no job of a higher class
//! can overtake it. A run is repeated if the processor crashes before its outcome is on disk. So both are
//! limited to what a slot does within moments.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// The last runs that count.
const RUNS: usize = 16;
/// A longer run is reported when it starts, and its slot prefetches nothing.
pub(crate) const SHORT_RUN: Duration = Duration::from_millis(10);
/// How long a prefetched run may wait for its slot, and how much work of a slot may wait to be recorded.
const AHEAD: Duration = Duration::from_millis(5);
/// Prefetched runs of each slot, at most.
const PER_SLOT_MAX: u128 = 16;
/// Prefetched runs of all slots together, unless there are more slots.
const FEW: usize = 64;

/// How long runs take.
#[derive(Debug, Default)]
pub(crate) struct RunDurations {
    last: Mutex<VecDeque<Duration>>,
    /// Running runs that have taken longer than [`SHORT_RUN`].
    long: AtomicUsize,
}

/// A running run that is not short; counted until this is dropped.
#[derive(Debug)]
pub(crate) struct LongRun<'a>(&'a RunDurations);

impl Drop for LongRun<'_> {
    fn drop(&mut self) {
        self.0.long.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RunDurations {
    /// Records how long a run took, or how long one waited in vain for a slot.
    pub fn record(&self, took: Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.truncate(RUNS - 1);
        last.push_front(took);
    }

    /// Counts a running run that is not short.
    pub fn enter_long(&self) -> LongRun<'_> {
        self.long.fetch_add(1, Ordering::Relaxed);
        LongRun(self)
    }

    /// How many runs to prefetch for `slots` slots. For each slot without a long run: as many as end within
    /// [`AHEAD`] if each takes as long as the longest of the last ones, at least one; none if one of the
    /// last ones was not short.
    pub fn prefetch(&self, slots: usize) -> usize {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(longest) = last.iter().max() else { return 0 };
        if last.len() < RUNS || *longest > SHORT_RUN {
            return 0;
        }
        let per_slot = AHEAD.as_micros() / longest.as_micros().max(1);
        let per_slot = usize::try_from(per_slot.clamp(1, PER_SLOT_MAX)).unwrap_or(1);
        let quick = slots.saturating_sub(self.long.load(Ordering::Relaxed));
        (quick * per_slot).min(prefetch_max(slots))
    }

    /// The permits out of [`recording_permits`] that an outcome takes: so many that there are at most as many
    /// outcomes as slots and prefetched runs.
    pub fn recording_weight(&self, slots: usize) -> u32 {
        let outcomes = slots + self.prefetch(slots);
        u32::try_from(recording_permits(slots).div_ceil(outcomes.max(1))).unwrap_or(1).max(1)
    }
}

fn prefetch_max(slots: usize) -> usize {
    slots.max(FEW)
}

/// The permits of all outcomes that wait to be recorded.
pub(crate) fn recording_permits(slots: usize) -> usize {
    slots + prefetch_max(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durations(all_ms: impl IntoIterator<Item = u64>) -> RunDurations {
        let durations = RunDurations::default();
        all_ms.into_iter().for_each(|ms| durations.record(Duration::from_millis(ms)));
        durations
    }

    #[test]
    fn only_short_runs_are_prefetched_and_few_of_those_that_are_not_shortest() {
        assert_eq!(durations([]).prefetch(8), 0, "nothing is known");
        assert_eq!(durations([0; RUNS - 1]).prefetch(8), 0, "little is known");
        assert_eq!(durations([0; RUNS]).prefetch(1), 16);
        assert_eq!(durations([0; RUNS]).prefetch(8), FEW);
        assert_eq!(durations([0; RUNS]).prefetch(256), 256);
        assert_eq!(durations([2; RUNS]).prefetch(4), 8);
        assert_eq!(durations([9; RUNS]).prefetch(8), 8);
        assert_eq!(durations([11; RUNS]).prefetch(8), 0);
    }

    #[test]
    fn slots_with_long_runs_prefetch_nothing() {
        let durations = durations([9; RUNS]);
        let long: Vec<_> = (0..7).map(|_| durations.enter_long()).collect();
        assert_eq!(durations.prefetch(8), 1);
        drop(long);
        assert_eq!(durations.prefetch(8), 8);
    }

    #[test]
    fn as_many_outcomes_as_slots_wait_to_be_recorded_and_more_of_short_runs() {
        let at_once = |durations: &RunDurations, slots| {
            recording_permits(slots) / durations.recording_weight(slots) as usize
        };
        for slots in 1..300 {
            let long = at_once(&durations([1_000; RUNS]), slots);
            assert!((1..=slots).contains(&long), "{long} of {slots} slots");
            assert!(at_once(&durations([0; RUNS]), slots) > slots);
        }
    }

    #[test]
    fn one_long_run_counts_until_sixteen_have_followed() {
        let durations = durations([0; RUNS]);
        durations.record(Duration::from_secs(1));
        (1..RUNS).for_each(|_| durations.record(Duration::ZERO));
        assert_eq!(durations.prefetch(1), 0);
        durations.record(Duration::ZERO);
        assert_eq!(durations.prefetch(1), 16);
    }
}
