//! Attempts that are repeated until one succeeds.

use std::{fmt::Display, time::Duration};

use tokio_util::sync::CancellationToken;

/// Makes attempts until one succeeds, with a `pause` after each failure, which is logged as `what`.
/// Returns `None` if `stop` is cancelled first.
pub async fn retry_until<T, E: Display, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    pause: Duration,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> Option<T> {
    loop {
        match attempt().await {
            Ok(done) => return Some(done),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "{what}, trying again"),
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
