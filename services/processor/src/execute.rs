//! One run: its handler under a time limit, its panic caught, its end put into words.

use std::{sync::Arc, time::Duration};

use job::{
    Json, Usage,
    bounds::{ERROR_BYTES_MAX, PROGRESS_BYTES_MAX, truncate},
    command::{self, End},
};
use nats::wire::Work;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    handler::{AnyHandler, Context, Outcome},
    registry::Registry,
};

/// How often progress is published.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How a run came to its end here.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The handler had its say.
    Reported(End, Usage),
    /// The run must stop: its outcome is no longer needed, only its usage.
    Stopped(Usage),
    /// The processor stops and hands the run back.
    Released(Usage),
}

/// Runs the handler of `work` until it ends, `stop` is cancelled (the run is not wanted any
/// more), or `release` is (the processor's grace is over). What it says of its progress goes to
/// `say`.
pub(crate) async fn run(
    registry: &Registry,
    work: Arc<Work>,
    limit: Duration,
    stop: CancellationToken,
    release: CancellationToken,
    say: impl Fn(Json),
) -> Ended {
    let handler = match registry.handler(&work) {
        Ok(handler) => handler,
        // Another processor may have it: processors can differ, for example during an update.
        Err(error) => return said(Outcome::retry(error)),
    };
    let canceled = CancellationToken::new();
    // Whatever ends the wait below tells the handler, also what it left running elsewhere.
    let _canceled = canceled.clone().drop_guard();
    let (context, progress) = Context::new(canceled);
    let reported = context.clone();
    let mut handling = Handling::start(handler, work, context);
    tokio::select! {
        biased;
        () = tell(progress, say) => Ended::Stopped(reported.usage_so_far()),
        () = stop.cancelled() => Ended::Stopped(reported.usage_so_far()),
        () = release.cancelled() => Ended::Released(reported.usage_so_far()),
        ended = handling.end() => said(ended),
        () = tokio::time::sleep(limit) => {
            let error = format!("time limit of {} s exceeded", limit.as_secs());
            said(Outcome::Retry { error, after: None, usage: reported.usage_so_far() })
        }
    }
}

/// Hands on what a handler says of its progress, the last of each second; never ends.
async fn tell(mut progress: watch::Receiver<Option<Json>>, say: impl Fn(Json)) {
    while progress.changed().await.is_ok() {
        let said = progress.borrow_and_update().clone();
        match said {
            Some(said) if said.get().len() <= PROGRESS_BYTES_MAX => say(said),
            Some(said) => {
                tracing::warn!(bytes = said.get().len(), "progress is too long, left out")
            }
            None => {}
        }
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
    // The handler has finished: its outcome follows.
    std::future::pending().await
}

/// A handler at work in a task of its own, which ends with this value.
struct Handling(tokio::task::JoinHandle<Outcome>);

impl Handling {
    fn start(handler: Arc<dyn AnyHandler>, work: Arc<Work>, context: Context) -> Self {
        Self(tokio::spawn(async move { handler.handle(work, context).await }))
    }

    async fn end(&mut self) -> Outcome {
        match (&mut self.0).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Outcome::retry(format!("handler panicked: {}", panic_text(&*panic))),
                Err(error) => Outcome::retry(format!("handler was aborted: {error}")),
            },
        }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The report of a handler's outcome, within the bounds of commands.
fn said(outcome: Outcome) -> Ended {
    let error_text = |error: &str| truncate(error, ERROR_BYTES_MAX).into();
    let ms = |after: Option<Duration>| {
        after.map(|after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX))
    };
    let (end, usage) = match outcome {
        Outcome::Done { result, usage } => (End::Done { result, stored: None }, usage),
        Outcome::Retry { error, after, usage } => {
            (End::Retry { error: error_text(&error), after_ms: ms(after) }, usage)
        }
        Outcome::Defer { error, after, usage } => {
            (End::Deferred { error: error_text(&error), after_ms: ms(after) }, usage)
        }
        Outcome::Reject { error, usage } => (End::Reject { error: error_text(&error) }, usage),
    };
    Ended::Reported(end, usage)
}

/// The report of a run for COMMANDS.
pub(crate) fn report(
    work: &Work,
    processor: &str,
    class: job::PriorityClass,
    started_at: i64,
    end: End,
    usage: Usage,
) -> command::Outcome {
    let not_started = crate::admission::outcome(work, processor, end, class);
    command::Outcome { started_at: Some(started_at), usage, ..not_started }
}

#[cfg(test)]
mod tests {
    use job::JobType;

    use super::*;
    use crate::Handler;

    struct Panics;

    impl Handler for Panics {
        async fn handle(&self, _: Arc<Work>, _: Context) -> Outcome {
            panic!("no such {}", "page");
        }
    }

    struct Hangs;

    impl Handler for Hangs {
        async fn handle(&self, _: Arc<Work>, _: Context) -> Outcome {
            std::future::pending().await
        }
    }

    async fn ended(registry: Registry, limit_ms: u64, stop: CancellationToken) -> Ended {
        let release = CancellationToken::new();
        let work = Arc::new(crate::handler::test_work("{}"));
        run(&registry, work, Duration::from_millis(limit_ms), stop, release, |_| {}).await
    }

    fn error(ended: &Ended) -> String {
        match ended {
            Ended::Reported(End::Retry { error, .. }, _) => error.to_string(),
            other => panic!("it ended otherwise: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_panic_and_a_run_without_end_are_failures_that_may_be_retried() {
        let forever = CancellationToken::new;
        let panics = Registry::new().with(JobType::ProcessBatch, Panics);
        let ended_so = ended(panics, 60_000, forever()).await;
        assert_eq!(error(&ended_so), "handler panicked: no such page");
        let hangs = Registry::new().with(JobType::ProcessBatch, Hangs);
        let ended_so = ended(hangs.clone(), 10, forever()).await;
        assert!(error(&ended_so).contains("time limit"));
        let ended_so = ended(Registry::new(), 10, forever()).await;
        assert!(error(&ended_so).contains("process_batch"));
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(matches!(ended(hangs, 60_000, stop).await, Ended::Stopped(_)));
    }
}
