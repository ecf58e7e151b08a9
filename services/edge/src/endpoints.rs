//! The endpoints, one module a resource: extract, check, ask, answer.

pub(crate) mod access;
pub(crate) mod analytics;
pub(crate) mod audit;
pub(crate) mod cancel;
mod command;
pub(crate) mod console;
pub(crate) mod deliveries;
pub(crate) mod enqueue;
pub(crate) mod events;
pub(crate) mod failures;
pub(crate) mod health;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod live;
pub(crate) mod metrics;
pub(crate) mod operations;
mod parameters;
pub(crate) mod processors;
pub(crate) mod project_list;
pub(crate) mod projects;
pub(crate) mod redo;
pub(crate) mod result;
pub(crate) mod retry;
pub(crate) mod scale;
pub(crate) mod schedules;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod tasks;
pub(crate) mod tickets;
pub(crate) mod update;

use std::time::Duration;

use axum::http::{HeaderName, StatusCode, header};
use job::{
    bounds::{ATTEMPTS_MAX, EXPIRES_IN_S_MAX},
    time::{Millis, parse_rfc3339},
};
use serde::Serialize;

use crate::{body::as_integer, error::Error};

/// How long a service behind the edge may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer: 200, or 202 if the command is durable but not processed yet.
type Answer<T> = Result<(StatusCode, axum::Json<T>), Error>;

fn ok<T: Serialize>(body: T) -> Answer<T> {
    Ok((StatusCode::OK, axum::Json(body)))
}

/// The time that a field has, in ms since 1970.
fn time(field: &str, text: &str) -> Result<Millis, Error> {
    parse_rfc3339(text).ok_or_else(|| {
        let text = format!("{field} must be a time like 2026-12-31T08:00:00Z (RFC 3339)");
        Error::invalid(text)
    })
}

/// One of several values that have names.
fn named<T: Copy>(
    field: &str,
    text: &str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, Error> {
    all.iter().copied().find(|value| name(*value) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|value| name(*value)).collect();
        Error::invalid(format!("{field} must be one of {}", names.join(", ")))
    })
}

/// The headers of a stream of events. The last one keeps proxies from holding events back.
fn event_stream_headers() -> [(HeaderName, &'static str); 3] {
    [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ]
}

/// Items of a page that names no limit, and of any page at most.
const PAGE_DEFAULT: usize = 50;
const PAGE_MAX: usize = 200;
/// Items before a page of a list whose cursors count them.
const SKIP_MAX: usize = 1_000_000;

/// How many items come before a page of a list whose cursors count them.
fn skip(cursor: Option<&str>) -> Result<usize, Error> {
    let Some(text) = cursor else { return Ok(0) };
    let skip = text.parse().ok().filter(|skip| *skip <= SKIP_MAX);
    skip.ok_or_else(|| Error::invalid("cursor must be the nextCursor of an answer"))
}

/// How many items a page has.
fn page_limit(text: Option<&str>) -> Result<usize, Error> {
    let Some(text) = text else { return Ok(PAGE_DEFAULT) };
    let limit = text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| Error::invalid(format!("limit must be an integer from 1 to {PAGE_MAX}")))
}

/// The integer that a number is, in whatever way it was written.
fn integer(number: &serde_json::Number) -> Option<u64> {
    let from_float = || number.as_f64().and_then(as_integer).and_then(|n| u64::try_from(n).ok());
    number.as_u64().or_else(from_float)
}

/// The priority of a request: an integer from 0 to 1000.
fn priority(value: Option<&serde_json::Number>, default: u16) -> Result<u16, Error> {
    let Some(value) = value else { return Ok(default) };
    let number = integer(value).and_then(|n| u16::try_from(n).ok()).filter(|n| *n <= 1_000);
    number.ok_or_else(|| Error::invalid("priority must be an integer from 0 to 1000"))
}

/// The attempts that each job may use.
fn max_attempts(value: Option<&serde_json::Number>) -> Result<Option<u32>, Error> {
    within("maxAttempts", value, ATTEMPTS_MAX)
}

/// How long a job may wait before it expires, in seconds.
fn expires_in(value: Option<&serde_json::Number>) -> Result<Option<u32>, Error> {
    within("expiresIn", value, EXPIRES_IN_S_MAX)
}

/// A number from 1 on.
fn within(
    field: &str,
    value: Option<&serde_json::Number>,
    most: u32,
) -> Result<Option<u32>, Error> {
    let Some(value) = value else { return Ok(None) };
    let number = integer(value).and_then(|n| u32::try_from(n).ok());
    let number = number.filter(|n| (1..=most).contains(n));
    let text = format!("{field} must be an integer from 1 to {most}");
    number.map(Some).ok_or_else(|| Error::invalid(text))
}

/// `1 job`, `2 jobs`.
fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
