//! Points in time: milliseconds since 1970 UTC inside, RFC 3339 with milliseconds outside.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = i64;

/// `at` as RFC 3339 in UTC with milliseconds, e.g. `2026-11-23T08:15:00.250Z`.
/// A time that no calendar holds is shown as the nearest end of what it holds.
pub fn rfc3339(at: Millis) -> String {
    let at = at.clamp(-62_135_596_800_000, 253_402_300_799_999);
    let date = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second(),
        date.millisecond()
    )
}

/// The time that an RFC 3339 text names, whatever its offset; `None` where it names none.
pub fn parse_rfc3339(text: &str) -> Option<Millis> {
    let date = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(date.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_milliseconds_and_read_back() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(parse_rfc3339("2023-11-14T23:13:20.123+01:00"), Some(1_700_000_000_123));
        assert_eq!(parse_rfc3339("yesterday"), None);
        assert!(rfc3339(i64::MAX).starts_with("9999-12-31"));
    }
}
