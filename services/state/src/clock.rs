//! The time of decisions. It never goes back. If the machine's clock was set back, time continues
//! by the monotonic clock, a little slower, until the machine's clock has caught up.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use job::time::Millis;

/// The part of its speed that time loses while it is ahead of the machine's clock. Waits last that much longer.
const SLOWER_BY: i64 = 8;

/// A clock. Cheap to clone; clones are one clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// The machine's clock.
    wall: fn() -> Millis,
    /// A time, and when it was.
    base: Arc<Mutex<(Millis, Instant)>>,
}

impl Clock {
    /// The clock of this machine, from here on.
    pub fn start() -> Self {
        Self::with(service::now_ms)
    }

    fn with(wall: fn() -> Millis) -> Self {
        Self { wall, base: Arc::new(Mutex::new((wall(), Instant::now()))) }
    }

    /// The time, which is not before `at_least`, the time of the last event.
    pub fn now(&self, at_least: Millis) -> Millis {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, elapsed) = (base.0, base.1.elapsed());
        let elapsed = i64::try_from(elapsed.as_millis()).unwrap_or(0);
        // Slower than the machine's clock: both meet again.
        let steady = since + elapsed - elapsed / SLOWER_BY;
        let ahead = (self.wall)().max(at_least);
        // Only then: each move of the base loses a part of a millisecond.
        if ahead > steady {
            *base = (ahead, Instant::now());
        }
        ahead.max(steady)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicI64, Ordering},
        time::Duration,
    };

    use super::*;

    #[test]
    fn time_goes_on_where_the_machines_clock_is_set_back() {
        static WALL: AtomicI64 = AtomicI64::new(1_000_000);
        let clock = Clock::with(|| WALL.load(Ordering::Relaxed));
        assert!(clock.now(0) >= 1_000_000);
        WALL.store(2_000_000, Ordering::Relaxed);
        assert!(clock.now(0) >= 2_000_000, "it follows the machine's clock ahead");
        WALL.store(5, Ordering::Relaxed);
        let asked = Instant::now();
        let before = clock.now(0);
        while asked.elapsed() < Duration::from_millis(20) {
            // Asked often it loses nothing.
            assert!(clock.now(0) >= before);
        }
        assert!(clock.now(0) >= before + 17, "it goes on, a little slower");
        assert!(clock.now(3_000_000) >= 3_000_000, "it is never before the last event");
        assert!(clock.now(0) >= 3_000_000);
    }
}
