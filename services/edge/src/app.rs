//! What every request can reach.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nats::{
    Broker,
    failure_marks::MarkStore,
    names::{self, StateQuery},
    storage::Unstored,
};
use serde::{Serialize, de::DeserializeOwned};
use service::BackgroundTask;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    events::Feed,
    keys::{Keys, WaitingRequests},
    live::LiveStats,
    measurements,
    readiness::Readiness,
    refusals::RecordedRefusals,
    submit::Submitter,
};

/// The streams of which a share beyond this makes new work be refused: what is left belongs to
/// the outcomes of what was accepted.
const FULL: [(&str, f64); 3] =
    [(names::COMMANDS, 0.8), (names::EVENTS, 0.9), (names::JOBS_STREAM, 0.9)];
/// How long the state services may take to answer.
const STATE_PATIENCE: Duration = Duration::from_millis(1_600);
/// Finds out whether the streams have room.
pub(crate) const FILL: BackgroundTask = BackgroundTask::new("stream fill");
/// How often their fill is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A handle to the edge's parts. Cheap to clone, as the router does several times a request.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

/// The edge's parts.
pub(crate) struct Parts {
    pub broker: Broker,
    pub submitter: Submitter,
    pub feed: Feed,
    pub live: LiveStats,
    pub keys: Keys,
    /// The marks of error groups.
    pub marks: MarkStore,
    /// The event streams and waiting requests of each key and project.
    pub waiting: WaitingRequests,
    /// How many refusals of each key the audit log has.
    pub refusals: RecordedRefusals,
    /// The subjects whose messages the broker does not store.
    pub unstored: Unstored,
    /// The last readiness, for all probes within a second.
    pub readiness: tokio::sync::Mutex<Readiness>,
    full: Arc<AtomicBool>,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Starts the parts.
    pub async fn start(
        config: &Config,
        broker: Broker,
        keys: Keys,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let submitter = Submitter::start(config, &broker).await?;
        let feed = Feed::start(broker.clone(), submitter.seen.clone(), stop.clone());
        let full = Arc::new(AtomicBool::new(false));
        tokio::spawn(look_at_fill(broker.clone(), full.clone(), stop));
        let unstored = broker.watch_storage().await?;
        let waiting =
            WaitingRequests::new(config.max_waiting_per_key, config.max_waiting_per_project);
        let marks = MarkStore::open(&broker).await?;
        let readiness = tokio::sync::Mutex::default();
        let live = LiveStats::default();
        let parts = Parts {
            broker,
            submitter,
            feed,
            live,
            keys,
            marks,
            waiting,
            refusals: RecordedRefusals::default(),
            unstored,
            readiness,
            full,
        };
        Ok(Self(Arc::new(parts)))
    }
}

impl Parts {
    /// Queries a state service that is up to date with everything this edge's clients have seen.
    ///
    /// # Errors
    /// If none answers.
    pub async fn ask_state<Q: Serialize, A: DeserializeOwned>(
        &self,
        to: StateQuery,
        question: &Q,
    ) -> Result<A, nats::query::Error> {
        self.broker.ask_state(to, question, &self.submitter.seen, STATE_PATIENCE).await
    }

    /// Whether new work is refused.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

async fn look_at_fill(broker: Broker, full: Arc<AtomicBool>, stop: CancellationToken) {
    loop {
        let (mut now, mut unread) = (None, None);
        for (stream, limit) in FULL {
            let Some(fill) = broker.fill(stream).await else {
                unread = Some(stream);
                continue;
            };
            measurements::stream_fill(stream, fill);
            if fill >= limit {
                now = Some((stream, fill));
            }
        }
        match unread {
            None => FILL.succeeded(),
            Some(stream) => FILL.failed(format!("the size of {stream} cannot be read")),
        }
        measurements::refusing_work(now.is_some());
        if full.swap(now.is_some(), Ordering::Relaxed) != now.is_some() {
            match now {
                Some((stream, fill)) => tracing::error!(stream, fill, "new work is refused"),
                None => tracing::warn!("new work is taken again"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
