//! How long ended jobs stay in the bucket while it has little room.
//!
//! Their retention would fill it at a high rate of jobs, and a full bucket refuses all work. Instead, ended jobs leave it earlier:
//! what is free, divided by the rate at which they arrive, is the time that they can stay. ClickHouse shows them afterwards.

use std::time::{Duration, Instant};

/// Up to this share of its size the bucket keeps each job for its whole retention.
const RELAXED: f64 = 0.35;
/// The share that ended jobs may fill. The edge refuses work at 0.9.
const TARGET: f64 = 0.7;
/// The share that they may fill to stay for [`STAYS_MIN`].
const TIGHT: f64 = 0.8;
/// The shortest time that an ended job stays if there is no room for more.
const STAYS_MIN_TIGHT: Duration = Duration::from_secs(5);
/// The shortest time if there is: a client can read the result. ClickHouse must have the job, too.
const STAYS_MIN: Duration = Duration::from_secs(60);
/// How long metrics may need for a job, in addition to how far it is behind.
const ROWS_WITHIN: Duration = Duration::from_secs(30);
/// How much longer failed jobs stay: they can be retried as long as they are there.
const FAILED_FACTOR: u32 = 4;
/// The shortest time that the record of an idempotency key stays if there is no room for more.
const RECORD_STAYS_MIN_TIGHT: Duration = Duration::from_secs(600);
/// The shortest time if there is.
const RECORD_STAYS_MIN: Duration = Duration::from_secs(3_600);
/// The time over which the rate is averaged.
const RATE_OVER: Duration = Duration::from_secs(60);

/// The bytes of the bucket, and how far metrics is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub used: u64,
    pub max: u64,
    pub behind: Duration,
}

/// The room of the bucket, and the rate at which ended jobs fill it.
pub(super) struct Pressure {
    /// Bytes of ended jobs since the last reading.
    bytes: u64,
    read_at: Instant,
    /// Bytes a second.
    rate: f64,
    /// How long ended jobs stay, if shorter than their retention, and how long records of idempotency keys.
    stays: Option<(Duration, Duration)>,
}

impl Pressure {
    pub fn new(now: Instant) -> Self {
        Self { bytes: 0, read_at: now, rate: 0.0, stays: None }
    }

    /// An ended job is written.
    pub fn written(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The room of the bucket, as it was read now.
    pub fn read(&mut self, now: Instant, room: Room) {
        let passed = now.duration_since(self.read_at).as_secs_f64().max(0.001);
        let current = self.bytes as f64 / passed;
        let kept = (-passed / RATE_OVER.as_secs_f64()).exp();
        self.rate = self.rate * kept + current * (1.0 - kept);
        (self.bytes, self.read_at) = (0, now);
        let (used, max) = (room.used as f64, room.max as f64);
        let rate = self.rate.max(current);
        let before = self.stays;
        self.stays = (room.max > 0 && rate > 0.0 && used > RELAXED * max).then(|| {
            let lasts = |share: f64| {
                let seconds = ((share * max - used) / rate).max(0.0);
                Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
            };
            let shortest = STAYS_MIN.max(room.behind + ROWS_WITHIN).min(lasts(TIGHT));
            let records = lasts(TARGET).max(RECORD_STAYS_MIN.min(lasts(TIGHT)));
            (lasts(TARGET).max(shortest).max(STAYS_MIN_TIGHT), records.max(RECORD_STAYS_MIN_TIGHT))
        });
        match (before, self.stays) {
            (None, Some((stays, _))) => tracing::warn!(
                fill = used / max,
                stays_s = stays.as_secs(),
                "the bucket of jobs is filling: ended jobs may leave it before their retention; make it larger \
                 (JOBMESH_JOBS_MB) or shorten the retention"
            ),
            (Some(_), None) => tracing::info!("the bucket of jobs has room again"),
            _ => {}
        }
    }

    /// How long an ended job is kept.
    pub fn retention(&self, retention: Duration, is_failed: bool) -> Duration {
        let factor = if is_failed { FAILED_FACTOR } else { 1 };
        self.stays.map_or(retention, |(jobs, _)| retention.min(jobs.saturating_mul(factor)))
    }

    /// How long the record of an idempotency key is kept.
    pub fn record_retention(&self, retention: Duration) -> Duration {
        self.stays.map_or(retention, |(_, records)| retention.min(records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
    const MAX: u64 = 8 << 30;

    /// What a bucket holds that is written at a steady rate for `hours`, with the largest fill.
    fn fill(bytes_per_s: u64, retention: Duration, hours: u64) -> f64 {
        const STEP: Duration = Duration::from_secs(20);
        let begun = Instant::now();
        let mut pressure = Pressure::new(begun);
        let mut expiries: std::collections::BTreeMap<Duration, u64> = Default::default();
        let (mut used, mut most) = (0_u64, 0.0_f64);
        for n in 1..=hours * 3_600 / STEP.as_secs() {
            let at = STEP * u32::try_from(n).expect("it fits");
            let later = expiries.split_off(&(at + Duration::from_nanos(1)));
            used -= expiries.values().sum::<u64>();
            expiries = later;
            let bytes = bytes_per_s * STEP.as_secs();
            *expiries.entry(at + pressure.retention(retention, false)).or_default() += bytes;
            used += bytes;
            pressure.written(usize::try_from(bytes).expect("it fits"));
            pressure.read(begun + at, Room { used, max: MAX, behind: Duration::ZERO });
            most = most.max(used as f64 / MAX as f64);
        }
        most
    }

    #[test]
    fn thirty_days_at_a_hundred_jobs_a_second_never_fill_the_bucket() {
        // 1 KB a job: without pressure 60 GB in a week.
        let most = fill(100 * 1_000, WEEK, 30 * 24);
        assert!((RELAXED..0.75).contains(&most), "{most}");
        // And 2,000 jobs a second.
        let most = fill(2_000 * 1_000, WEEK, 7 * 24);
        assert!((RELAXED..0.75).contains(&most), "{most}");
    }

    #[test]
    fn a_low_rate_keeps_its_retention() {
        let most = fill(3 * 1_000, WEEK, 14 * 24);
        assert!((0.2..RELAXED).contains(&most), "{most}");
        let now = Instant::now();
        let mut pressure = Pressure::new(now);
        pressure.written(1_000_000_000);
        pressure.read(
            now + Duration::from_secs(1),
            Room { used: MAX / 4, max: MAX, behind: Duration::ZERO },
        );
        assert_eq!(pressure.retention(WEEK, false), WEEK, "a burst into an empty bucket");
    }

    #[test]
    fn failed_jobs_and_records_of_keys_stay_longer() {
        let pressure = full_at(1.0, Duration::ZERO, 1 << 30);
        assert_eq!(pressure.retention(WEEK, false), STAYS_MIN_TIGHT);
        assert_eq!(pressure.retention(WEEK, true), 4 * STAYS_MIN_TIGHT);
        assert_eq!(pressure.retention(Duration::from_secs(3), true), Duration::from_secs(3));
        assert_eq!(pressure.record_retention(WEEK), RECORD_STAYS_MIN_TIGHT);
        let pressure = full_at(0.75, Duration::ZERO, 1 << 10);
        assert_eq!(pressure.record_retention(WEEK), RECORD_STAYS_MIN);
    }

    #[test]
    fn jobs_stay_until_metrics_has_them_unless_the_room_ends() {
        let stays = |share, behind, rate| full_at(share, behind, rate).retention(WEEK, false);
        assert_eq!(stays(0.75, Duration::ZERO, 1 << 20), STAYS_MIN);
        let behind = Duration::from_secs(300);
        assert_eq!(stays(0.75, behind, 1 << 20), behind + ROWS_WITHIN);
        assert_eq!(stays(0.85, behind, 1 << 20), STAYS_MIN_TIGHT);
        // 5 % of 8 GiB, at 40 MiB a second.
        assert_eq!(stays(0.75, behind, 40 << 20).as_secs(), 10);
    }

    /// After a second at a rate, with this share of the bucket used.
    fn full_at(share: f64, behind: Duration, bytes_per_s: usize) -> Pressure {
        let now = Instant::now();
        let mut pressure = Pressure::new(now);
        pressure.written(bytes_per_s);
        let used = (MAX as f64 * share) as u64;
        pressure.read(now + Duration::from_secs(1), Room { used, max: MAX, behind });
        pressure
    }
}
