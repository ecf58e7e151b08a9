//! When to call a server again: `Retry-After` and what providers send instead.

use std::time::Duration;

use job::time::{Millis, parse_rfc3339};
use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};

/// The longest request to come back later that is followed.
const LATER_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Numbers from here on are points in time, in seconds since 1970, not waits.
const EPOCH_S_MIN: f64 = 1e9;
/// The same in ms.
const EPOCH_MS_MIN: f64 = 1e12;

/// How long a server asks to wait, of at most a day: by `Retry-After` (seconds, with fractions, or an
/// HTTP date) or `retry-after-ms`, else by the limits that it says are used up
/// (`x-ratelimit-reset-*` as OpenAI sends them, `anthropic-ratelimit-*-reset`). Limits with something left count only if
/// the status says that there are too many requests: many servers report them with every answer.
pub(super) fn later(status: StatusCode, headers: &HeaderMap, now: Millis) -> Option<Duration> {
    let named = [
        text(headers, RETRY_AFTER.as_str()).and_then(|value| retry_after(value, now)),
        text(headers, "retry-after-ms").and_then(number).and_then(|ms| seconds(ms / 1_000.0)),
    ];
    let named = named.into_iter().flatten().max();
    named.or_else(|| resets(status, headers, now)).map(|later| later.min(LATER_MAX))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds.min(LATER_MAX.as_secs_f64())).ok()
}

fn retry_after(value: &str, now: Millis) -> Option<Duration> {
    match number(value) {
        Some(wait) => seconds(wait),
        None => {
            let at = httpdate::parse_http_date(value).ok()?;
            let at = at.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(at.saturating_sub(since_1970(now)))
        }
    }
}

fn since_1970(now: Millis) -> Duration {
    Duration::from_millis(u64::try_from(now).unwrap_or(0))
}

/// When the exhausted limits are reset; if none is marked as exhausted and the status implies it,
/// when all of them are.
fn resets(status: StatusCode, headers: &HeaderMap, now: Millis) -> Option<Duration> {
    let mut used_up = None;
    let mut any = None;
    for (name, value) in headers {
        let name = name.as_str();
        let remaining = if let Some(of) = name.strip_prefix("x-ratelimit-reset") {
            format!("x-ratelimit-remaining{of}")
        } else if let Some(of) =
            name.strip_prefix("anthropic-ratelimit-").and_then(|of| of.strip_suffix("-reset"))
        {
            format!("anthropic-ratelimit-{of}-remaining")
        } else {
            continue;
        };
        let Some(wait) = value.to_str().ok().and_then(|value| reset(value.trim(), now)) else {
            continue;
        };
        any = any.max(Some(wait));
        if text(headers, &remaining).and_then(number) == Some(0.0) {
            used_up = used_up.max(Some(wait));
        }
    }
    used_up.or(any.filter(|_| matches!(status.as_u16(), 429 | 529)))
}

/// A wait as providers write it: seconds, a point in time, or a duration such as `6m0s` or `20ms`.
fn reset(value: &str, now: Millis) -> Option<Duration> {
    if let Some(number) = number(value) {
        return match number {
            EPOCH_MS_MIN.. => {
                Some(seconds_since_1970(number / 1_000.0)?.saturating_sub(since_1970(now)))
            }
            EPOCH_S_MIN.. => Some(seconds_since_1970(number)?.saturating_sub(since_1970(now))),
            wait => seconds(wait),
        };
    }
    if let Some(at) = parse_rfc3339(value) {
        return Some(Duration::from_millis(u64::try_from(at - now).unwrap_or(0)));
    }
    let mut total = 0.0;
    let mut rest = value;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount = number(&rest[..digits])?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_s = match &rest[..letters] {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += amount * unit_s;
        rest = &rest[letters..];
    }
    seconds(total)
}

fn seconds_since_1970(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    /// 2026-11-26T10:00:00Z.
    const NOW: Millis = 1_795_687_200_000;

    fn later_ms(headers: &[(&str, &str)]) -> Option<u128> {
        let header = |(name, value): &(&str, &str)| {
            let name: HeaderName = name.parse().expect("it is a name");
            (name, HeaderValue::from_str(value).expect("it is a value"))
        };
        let headers = headers.iter().map(header).collect();
        later(StatusCode::TOO_MANY_REQUESTS, &headers, NOW).map(|later| later.as_millis())
    }

    #[test]
    fn every_way_to_ask_for_patience_is_understood() {
        for (headers, expected) in [
            (&[("retry-after", "3")][..], Some(3_000)),
            (&[("retry-after", "1.5")], Some(1_500)),
            (&[("retry-after", "Thu, 26 Nov 2026 10:00:03 GMT")], Some(3_000)),
            (&[("retry-after", "Thu, 26 Nov 2026 09:00:00 GMT")], Some(0)),
            (&[("retry-after", "99999999999999999999999")], Some(86_400_000)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after-ms", "1500")], Some(1_500)),
            (&[("retry-after", "1"), ("retry-after-ms", "1500")], Some(1_500)),
            (&[("x-ratelimit-reset-requests", "6m0s")], Some(360_000)),
            (&[("x-ratelimit-reset-tokens", "1h2m3.5s")], Some(3_723_500)),
            (&[("x-ratelimit-reset-tokens", "20ms")], Some(20)),
            (&[("x-ratelimit-reset", "1795687205")], Some(5_000)),
            (&[("x-ratelimit-reset", "1795687205000")], Some(5_000)),
            (&[("x-ratelimit-reset", "7")], Some(7_000)),
            (&[("anthropic-ratelimit-tokens-reset", "2026-11-26T10:00:09Z")], Some(9_000)),
            (
                &[
                    ("x-ratelimit-reset-requests", "1s"),
                    ("x-ratelimit-remaining-requests", "0"),
                    ("x-ratelimit-reset-tokens", "6m0s"),
                    ("x-ratelimit-remaining-tokens", "149984"),
                ],
                Some(1_000),
            ),
            (&[("x-ratelimit-reset-requests", "later")], None),
            (&[], None),
        ] {
            assert_eq!(later_ms(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn limits_with_something_left_delay_no_retry_of_a_failure() {
        let limits = |left: &'static str| {
            let pairs = [("x-ratelimit-reset", "3600"), ("x-ratelimit-remaining", left)];
            let pair = |(name, value): (&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            pairs.into_iter().map(pair).collect::<HeaderMap>()
        };
        for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE] {
            assert_eq!(later(status, &limits("4999"), NOW), None);
            assert_eq!(later(status, &limits("0"), NOW), Some(Duration::from_secs(3_600)));
        }
    }
}
