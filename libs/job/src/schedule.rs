//! Schedules: jobs that are enqueued by the calendar.
//!
//! When a schedule fires next is computed once, by the decision that sets or fires it, and
//! written into its event: a replay, or a replica with another table of time zones, computes
//! nothing.

mod cron;

use croner::Cron;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::{Id, JobId, Json, time::Millis};
use cron::Refused;

/// What a schedule does while a job of its batch is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum IfLive {
    /// Nothing: this time is left out.
    #[default]
    Skip,
    /// The live job is cancelled, as by any newer job of its batch.
    Replace,
}

/// A job that is enqueued by the calendar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Minute, hour, day of month, month, day of week.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub cron: Id,
    /// The time zone that they are read in, by its name in the IANA database.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub time_zone: Id,
    /// The batch of its jobs.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub batch_id: Id,
    /// 0 to 1000, lower first.
    pub priority: u16,
    /// The attempts of each job; the project's number where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_attempts: Option<u32>,
    /// What the handler is given.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub data: Json,
    /// What to do while the last job is live.
    pub if_live: IfLive,
}

/// A schedule with its place in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleState {
    /// The schedule. Not flattened: a JSON text that is carried as it is cannot be read through that.
    pub schedule: Schedule,
    /// When it fires next; never again where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_at: Option<Millis>,
    /// The time that it fired for last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_at: Option<Millis>,
    /// The job that it enqueued last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_job_id: Option<JobId>,
}

/// A schedule that has no meaning.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Its pattern cannot be read.
    #[error("cron {cron:?} cannot be read: {why}")]
    Cron {
        /// The pattern.
        cron: Id,
        /// What was wrong.
        why: String,
    },
    /// There is no such time zone.
    #[error("timeZone {0:?} is not in the IANA database; names are like Europe/Berlin")]
    TimeZone(Id),
    /// It would never fire.
    #[error("cron {0:?} never comes")]
    Never(Id),
}

/// The time zone of an IANA name.
///
/// # Errors
/// If there is none of this name.
fn time_zone(name: &str) -> Result<TimeZone, Malformed> {
    TimeZone::get(name).map_err(|_| Malformed::TimeZone(name.into()))
}

/// An IANA name of a time zone as the database spells it: names are read without regard to case.
///
/// # Errors
/// If there is none of this name.
pub fn time_zone_name(name: &str) -> Result<String, Malformed> {
    let zone = time_zone(name)?;
    Ok(zone.iana_name().unwrap_or(name).to_owned())
}

impl Schedule {
    /// When it fires first after `at`.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn next_after(&self, at: Millis) -> Result<Millis, Malformed> {
        let found = self.cron()?.find_next_occurrence(&self.zoned(at)?, false);
        let found = found.map_err(|_| Malformed::Never(self.cron.clone()))?;
        Ok(found.timestamp().as_millisecond())
    }

    /// The times at which it fires from `first` on, at most `count`.
    pub fn times_from(&self, first: Millis, count: usize) -> Vec<Millis> {
        let times = std::iter::successors(Some(first), |at| self.next_after(*at).ok());
        times.take(count).collect()
    }

    /// The last time that it was to fire at or before `at`.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn last_until(&self, at: Millis) -> Result<Millis, Malformed> {
        let found = self.cron()?.find_previous_occurrence(&self.zoned(at)?, true);
        let found = found.map_err(|_| Malformed::Never(self.cron.clone()))?;
        Ok(found.timestamp().as_millisecond())
    }

    fn cron(&self) -> Result<Cron, Malformed> {
        cron::parse(&self.cron).map_err(|refused| match refused {
            Refused::Malformed(why) => Malformed::Cron { cron: self.cron.clone(), why },
            Refused::Never => Malformed::Never(self.cron.clone()),
        })
    }

    fn zoned(&self, at: Millis) -> Result<Zoned, Malformed> {
        let unknown = |_| Malformed::TimeZone(self.time_zone.clone());
        let zone = time_zone(&self.time_zone)?;
        let time = Timestamp::from_millisecond(at).map_err(unknown)?;
        Ok(time.to_zoned(zone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{parse_rfc3339, rfc3339};

    fn schedule(cron: &str, time_zone: &str) -> Schedule {
        Schedule {
            cron: cron.into(),
            time_zone: time_zone.into(),
            batch_id: "b".into(),
            priority: 10,
            max_attempts: None,
            data: Json::default(),
            if_live: IfLive::Skip,
        }
    }

    fn at(text: &str) -> Millis {
        parse_rfc3339(text).expect("it is a time")
    }

    #[test]
    fn times_come_in_their_zone_also_where_clocks_are_changed() {
        for (cron, zone, after, next) in [
            ("*/15 * * * *", "UTC", "2026-11-24T10:07:00Z", "2026-11-24T10:15:00.000Z"),
            ("0 9 * * 1-5", "Europe/Berlin", "2026-11-27T09:00:00Z", "2026-11-30T08:00:00.000Z"),
            // At two the clocks are set to three: half past two comes when it is three.
            ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00.000Z"),
            ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00.000Z"),
            // A star with a step restricts nothing: the days of both fields must agree.
            ("0 0 */2 * 1", "UTC", "2026-11-26T06:00:00Z", "2026-12-07T00:00:00.000Z"),
            ("* * */14 4 0", "UTC", "2026-11-26T06:00:00Z", "2029-04-01T00:00:00.000Z"),
            ("* 18-18 */9 */3 */2", "UTC", "2026-11-26T06:00:00Z", "2027-01-10T18:00:00.000Z"),
            // Of two restricted day fields one is enough.
            ("0 0 13 * 5", "UTC", "2026-11-26T06:00:00Z", "2026-11-27T00:00:00.000Z"),
            ("0 0 * jan,feb sun", "UTC", "2026-11-26T06:00:00Z", "2027-01-03T00:00:00.000Z"),
            ("0 0 * * 5-7", "UTC", "2026-11-28T06:00:00Z", "2026-11-29T00:00:00.000Z"),
            ("\u{ff10} * * * *", "UTC", "2026-11-26T06:30:00Z", "2026-11-26T07:00:00.000Z"),
        ] {
            let found = schedule(cron, zone).next_after(at(after)).expect("it comes");
            assert_eq!(rfc3339(found), next, "{cron} {zone}");
        }
        let last = schedule("0 * * * *", "UTC").last_until(at("2026-11-24T10:59:59Z"));
        assert_eq!(rfc3339(last.expect("it came")), "2026-11-24T10:00:00.000Z");
    }

    #[test]
    fn nonsense_is_refused_by_its_name() {
        for (cron, zone, names) in [
            ("* * * *", "UTC", "4 fields"),
            ("* * * * * *", "UTC", "6 fields"),
            ("@daily", "UTC", "1 fields"),
            ("61 * * * *", "UTC", "cron"),
            ("x * * * *", "UTC", "cron"),
            ("0 0 31 2 *", "UTC", "never"),
            ("0 0 30 2 */2", "UTC", "never"),
            ("0 0 31 4,6,9,11 *", "UTC", "never"),
            (", * * * *", "UTC", "minute"),
            ("* , * * *", "UTC", "hour"),
            ("0 0 , * 1", "UTC", "day of month"),
            ("0 0 1 * ,", "UTC", "day of week"),
            ("* * * * 1,", "UTC", "day of week"),
            ("0 0 * * SAT-SUN", "UTC", "day of week"),
            ("jan * * * *", "UTC", "minute"),
            ("* mon * * *", "UTC", "hour"),
            ("0 0 1MAY * *", "UTC", "day of month"),
            ("0 0 * JANFEB *", "UTC", "month"),
            ("* * * * +1", "UTC", "day of week"),
            ("* * ? * ?", "UTC", "day of month"),
            ("0 0 L * *", "UTC", "day of month"),
            ("0 0 15W * *", "UTC", "day of month"),
            ("0 0 * * 5L", "UTC", "day of week"),
            ("0 0 * * 1#2", "UTC", "day of week"),
            ("*/0 * * * *", "UTC", "minute"),
            ("5/10 * * * *", "UTC", "minute"),
            ("** * * * *", "UTC", "minute"),
            ("* * * * *", "Europe/Atlantis", "Atlantis"),
        ] {
            let error = schedule(cron, zone).next_after(0).expect_err("it has no meaning");
            assert!(error.to_string().contains(names), "{cron}: {error}");
        }
    }

    /// The worst patterns that are searched, and the longest that are refused.
    #[test]
    fn every_pattern_is_answered_at_once() {
        let long = format!("{} * * * *", "0,".repeat(120));
        let begun = std::time::Instant::now();
        for cron in ["0 0 29 2 */7", "59 23 29 2 */6", "0 0 31 12 */5", ", * * * *", &long] {
            for _ in 0..10 {
                let schedule = schedule(cron, "Australia/Lord_Howe");
                let _ = (schedule.next_after(at("2026-11-26T06:00:00Z")), schedule.last_until(0));
            }
        }
        println!("{:?} a pattern", begun.elapsed() / 50);
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
