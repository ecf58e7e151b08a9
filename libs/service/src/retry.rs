//! Attempts that are repeated until one succeeds.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

/// How often a failure that repeats is logged.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Tells failures that are worth a line of the log from those that repeat the last one.
#[derive(Default)]
pub struct Failures(Option<(Instant, String)>);

impl Failures {
    /// The next failure is news: this attempt succeeded.
    pub fn succeeded(&mut self) {
        self.0 = None;
    }

    /// True if this error differs from the last one for which it was, or that one was half a minute ago.
    pub fn is_news(&mut self, error: &str) -> bool {
        let repeats =
            self.0.as_ref().is_some_and(|(at, last)| last == error && at.elapsed() < LOG_EVERY);
        if !repeats {
            self.0 = Some((Instant::now(), error.to_owned()));
        }
        !repeats
    }
}

/// Makes attempts until one succeeds, with a `pause` after each failure, which is logged as `what` unless it
/// repeats the one before. Returns `None` if `stop` is cancelled first.
pub async fn retry_until<T, E: Display, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    pause: Duration,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> Option<T> {
    let mut failures = Failures::default();
    loop {
        match attempt().await {
            Ok(done) => return Some(done),
            Err(error) => {
                let error = format!("{error:#}");
                if failures.is_news(&error) {
                    tracing::warn!(error, "{what}, trying again");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn attempts_are_repeated_until_one_succeeds() {
        let attempts = AtomicU32::new(0);
        let attempt = || {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            async move { if attempt < 2 { Err("not yet") } else { Ok(attempt) } }
        };
        let stop = CancellationToken::new();
        assert_eq!(retry_until(&stop, PAUSE, "not done", attempt).await, Some(2));
    }

    #[test]
    fn a_failure_that_repeats_is_no_news() {
        let mut failures = Failures::default();
        let news = ["away", "away", "slow", "away"].map(|error| failures.is_news(error));
        assert_eq!(news, [true, false, true, true]);
        failures.succeeded();
        assert!(failures.is_news("away"));
    }

    #[tokio::test]
    async fn attempts_end_when_stopped() {
        let stop = CancellationToken::new();
        let attempt = || {
            stop.cancel();
            async { Err::<(), _>("never") }
        };
        assert_eq!(retry_until(&stop, PAUSE, "not done", attempt).await, None);
    }
}
