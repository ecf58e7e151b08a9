//! The clock of this machine.

/// Milliseconds since 1970 UTC.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(0)
}
