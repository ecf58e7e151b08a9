//! Changes of jobs for subscribers of this edge.
//!
//! The id of an event is its position in EVENTS, the same on every edge and after any restart: a
//! client that resumes with its last id misses nothing and receives nothing twice. Missed events come
//! from the buffer of the [broadcaster], else from EVENTS. A client that reads more slowly than jobs
//! change is disconnected with an event that reports this.

mod backfill;
mod broadcaster;
mod buffered;
mod filter;
mod frame;
mod subscription;

use job::JobId;

use backfill::Backfill;
use broadcaster::{Broadcaster, JoinResult, Received};

pub(crate) use broadcaster::DISTRIBUTION;
pub(crate) use filter::Filter;
pub(crate) use subscription::Subscription;

/// The changes of all jobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Feed {
    broadcaster: Broadcaster,
    backfill: Backfill,
}

impl Feed {
    /// Starts to follow EVENTS; `seen` records what subscribers have seen.
    pub fn start(
        broker: nats::Broker,
        seen: nats::query::ReadToken,
        stop: tokio_util::sync::CancellationToken,
    ) -> Self {
        Self {
            broadcaster: Broadcaster::start(broker.clone(), seen, stop),
            backfill: Backfill::new(broker),
        }
    }

    /// Whether the edge stops.
    pub fn is_stopping(&self) -> bool {
        self.broadcaster.stop.is_cancelled()
    }

    /// Waits until the edge stops.
    pub async fn stopping(&self) {
        self.broadcaster.stop.cancelled().await;
    }

    /// The changes of one job from now on.
    pub fn job(&self, job: JobId) -> Option<Changes> {
        match self.broadcaster.join(&Filter::Job(job, None), None) {
            JoinResult::From(_, received) => Some(Changes(received)),
            JoinResult::Elsewhere => None,
        }
    }
}

/// A signal for each change of one job.
pub(crate) struct Changes(Box<Received>);

impl Changes {
    /// Waits for the next change, or for the end of the events.
    pub async fn next(&mut self) {
        self.0.next().await;
    }

    /// True at the end of the events.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}
