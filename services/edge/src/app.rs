//! What every request can reach. Cheap to clone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh::{
    Broker,
    names::{self, StateQuestion},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{Config, events::Feed, submit::Submitter};

/// The share of COMMANDS above which new work is refused: the rest belongs to outcomes.
const QUEUE_FULL: f64 = 0.8;
/// How long the state services may take to answer.
const STATE_PATIENCE: Duration = Duration::from_millis(1_600);
/// How often the fill of COMMANDS is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The edge's parts.
#[derive(Clone)]
pub(crate) struct App {
    pub broker: Broker,
    pub submitter: Submitter,
    pub feed: Feed,
    full: Arc<AtomicBool>,
}

impl App {
    /// Starts the parts.
    pub async fn start(
        config: &Config,
        broker: Broker,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let submitter = Submitter::start(config, &broker).await?;
        let feed = Feed::start(broker.clone(), stop.clone());
        let full = Arc::new(AtomicBool::new(false));
        tokio::spawn(look_at_fill(broker.clone(), full.clone(), stop));
        Ok(Self { broker, submitter, feed, full })
    }

    /// Asks a state service that knows what this edge's clients were told.
    ///
    /// # Errors
    /// Where none answers.
    pub async fn ask_state<Q: Serialize, A: DeserializeOwned>(
        &self,
        to: StateQuestion,
        question: &Q,
    ) -> Result<A, mesh::ask::Error> {
        self.broker.ask_state(to, question, self.submitter.seen(), STATE_PATIENCE).await
    }

    /// Whether new work is refused.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

async fn look_at_fill(broker: Broker, full: Arc<AtomicBool>, stop: CancellationToken) {
    loop {
        if let Ok(stream) = broker.js.get_stream(names::COMMANDS).await {
            let info = stream.cached_info();
            let max = info.config.max_bytes;
            let fill = if max > 0 { info.state.bytes as f64 / max as f64 } else { 0.0 };
            let now = fill >= QUEUE_FULL;
            if full.swap(now, Ordering::Relaxed) != now {
                tracing::warn!(fill, full = now, "COMMANDS fills up or is free again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
