//! What a handler is: a job in, an outcome out.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use job::{Json, Usage};
use nats::wire::Work;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How a run ended, as its handler says.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The work is done.
    Done {
        /// What is kept with the job: JSON of at most 16 MB, or what the processor is set to.
        result: Option<Json>,
        /// What it cost.
        usage: Usage,
    },
    /// It failed and may be tried again, while attempts are left.
    Retry {
        /// What went wrong.
        error: String,
        /// The minimum wait.
        after: Option<Duration>,
        /// What it cost.
        usage: Usage,
    },
    /// The provider asked to be called later. No attempt is used, and for a while the project
    /// starts nothing else.
    Defer {
        /// Why.
        error: String,
        /// How long to wait at least; as after a failure if absent.
        after: Option<Duration>,
        /// What it cost.
        usage: Usage,
    },
    /// It failed and would fail again.
    Reject {
        /// What went wrong.
        error: String,
        /// What it cost.
        usage: Usage,
    },
}

impl Outcome {
    /// A failure that may pass, at no cost.
    pub fn retry(error: impl Into<String>) -> Self {
        Self::Retry { error: error.into(), after: None, usage: Usage::default() }
    }

    /// A failure that will not pass, at no cost.
    pub fn reject(error: impl Into<String>) -> Self {
        Self::Reject { error: error.into(), usage: Usage::default() }
    }
}

/// What a handler is given beside its job.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Canceled when the run must stop. The handler's future is dropped then as well; a handler
    /// with work outside of its future watches this.
    pub canceled: CancellationToken,
    progress: Option<watch::Sender<Option<Json>>>,
    usage: Arc<Mutex<Usage>>,
}

impl Context {
    /// A context, and what its handler says of its progress.
    pub(crate) fn new(canceled: CancellationToken) -> (Self, watch::Receiver<Option<Json>>) {
        let (said, progress) = watch::channel(None);
        (Self { canceled, progress: Some(said), usage: Arc::default() }, progress)
    }

    /// Reports the usage of the run so far. It is counted even if the run is canceled or runs out
    /// of time; an outcome with the usage of the whole run replaces it.
    pub fn usage(&self, so_far: Usage) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = so_far;
    }

    /// The last value passed to [`usage`](Self::usage).
    pub fn usage_so_far(&self) -> Usage {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says how far the run is: any JSON of at most 4 KB. It is shown in the job's status and in
    /// events, the last of each second.
    pub fn progress(&self, progress: Json) {
        if let Some(said) = &self.progress {
            said.send_replace(Some(progress));
        }
    }
}

/// Runs jobs. A job may be run more than once ([`Work::attempt`] tells), so what a handler does
/// outside should be keyed by the job's id.
pub trait Handler: Send + Sync + 'static {
    /// Runs one job. A panic is a failure that may be retried.
    fn handle(&self, work: Arc<Work>, context: Context) -> impl Future<Output = Outcome> + Send;
}

/// A handler whose type is forgotten.
pub(crate) trait AnyHandler: Send + Sync {
    fn handle(
        self: Arc<Self>,
        work: Arc<Work>,
        context: Context,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;
}

impl<H: Handler> AnyHandler for H {
    fn handle(
        self: Arc<Self>,
        work: Arc<Work>,
        context: Context,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        Box::pin(async move { Handler::handle(&*self, work, context).await })
    }
}

/// Work with this data, for tests of handlers.
#[cfg(test)]
pub(crate) fn test_work(data: &str) -> Work {
    Work {
        job: job::JobId::from_u128(1),
        run: 1,
        attempt: 1,
        max_attempts: 3,
        project: "p".into(),
        batch: "b".into(),
        job_type: job::JobType::ProcessBatch,
        priority: 10,
        queued_at: 1,
        handler: None,
        options: None,
        retention_s: 60,
        data: serde_json::from_str(data).expect("it is JSON"),
        traceparent: None,
        token: None,
    }
}
