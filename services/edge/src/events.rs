//! GET /api/queue/events: changes of jobs as server-sent events.
//!
//! The id of an event is its position in EVENTS, the same on every edge and after any restart: a
//! client that resumes with its last id (`Last-Event-ID`) misses nothing and gets nothing twice.
//! Missed events come from the buffer of the [broadcaster], else from EVENTS. A client that reads
//! more slowly than jobs change is disconnected with an event that reports this.

mod backfill;
pub(crate) mod broadcaster;
mod frame;

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use job::{Id, JobId, Position};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{app::App, body, error::Error, ids, openapi::QuestionError};
use backfill::Backfill;
use broadcaster::{Broadcaster, Filter, JoinResult, Received};
use frame::frame;

/// How often an idle stream sends a comment with its position.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long to wait before EVENTS is read again after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How soon behind a chunk the next one goes out: at rest an event goes at once, of many in a row
/// those of this while go together, for each chunk costs both sides a system call.
const CHUNK_EVERY: Duration = Duration::from_millis(50);
/// A chunk of this many bytes gets no further events.
const CHUNK_BYTES: usize = 64 << 10;
/// How soon a client is to come back, in ms.
const RETRY_MS: u32 = 1_000;

/// A handle to all that follows jobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Feed {
    broadcaster: Broadcaster,
    backfill: Backfill,
}

impl Feed {
    /// Starts to follow EVENTS; `seen` records what subscribers have seen.
    pub fn start(
        broker: mesh::Broker,
        seen: mesh::query::ReadToken,
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

    /// What one job does from now on.
    pub fn job(&self, job: JobId) -> Option<Changes> {
        match self.broadcaster.join(&Filter::Job(job, None), None) {
            JoinResult::From(_, heard) => Some(Changes(heard)),
            JoinResult::Elsewhere => None,
        }
    }
}

/// Tells that a job changed.
pub(crate) struct Changes(Box<Received>);

impl Changes {
    /// Waits for the next change, or for the end of such news.
    pub async fn next(&mut self) {
        self.0.next().await;
    }

    /// True at the end of the events.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

/// Streams changes of jobs: of all, of a project, of a batch, or of one job.
#[utoipa::path(
    get, path = "/api/queue/events", tag = "queue", operation_id = "events",
    params(
        ("projectId" = Option<String>, Query, min_length = 1, max_length = 128),
        ("batchId" = Option<String>, Query, description = "With its project.", min_length = 1, max_length = 128),
        ("jobId" = Option<uuid::Uuid>, Query),
        ("after" = Option<String>, Query, description = "The position to go on behind.", pattern = "^[0-9]{1,19}[.][0-9]{1,10}$"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen: goes before `after`.", pattern = "^[0-9]{1,19}[.][0-9]{1,10}$"),
    ),
    responses((status = 200, description = "Changes of jobs, as they happen.", body = String, content_type = "text/event-stream"), QuestionError),
)]
pub(crate) async fn stream(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let [project, batch, job, after] =
        body::query(&uri, ["projectId", "batchId", "jobId", "after"])?;
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    let batch = batch.map(|id| ids::id("batchId", &id)).transpose()?;
    let job = job.map(|id| ids::job_id("jobId", &id)).transpose()?;
    let wanted = wanted(project, batch, job)?;
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?").to_owned());
    let named = if last.is_some() { "Last-Event-ID" } else { "after" };
    let after = last.or(after).filter(|id| !id.is_empty());
    let after = after.map(|id| id.parse::<Position>()).transpose();
    let after = after.map_err(|error| Error::invalid(format!("{named}: {error}")))?;
    let subscription = Subscription {
        feed: app.feed.clone(),
        wanted,
        after,
        heard: None,
        first: VecDeque::new(),
        begun: false,
        next_chunk: Instant::now(),
    };
    let chunks = stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        let (chunk, goes_on) = subscription.next().await;
        Some((Ok::<Bytes, Infallible>(chunk), goes_on.then_some(subscription)))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((
        headers,
        Body::from_stream(chunks.filter(|chunk| {
            let any = chunk.as_ref().is_ok_and(|chunk| !chunk.is_empty());
            std::future::ready(any)
        })),
    )
        .into_response())
}

fn wanted(project: Option<Id>, batch: Option<Id>, job: Option<JobId>) -> Result<Filter, Error> {
    Ok(match (project, batch, job) {
        (_, Some(_), Some(_)) => {
            return Err(Error::invalid("batchId and jobId exclude each other"));
        }
        (None, Some(_), _) => return Err(Error::missing("projectId, with batchId,")),
        (project, None, Some(job)) => Filter::Job(job, project),
        (Some(project), Some(batch), None) => Filter::Batch(project, batch),
        (Some(project), None, None) => Filter::Project(project),
        (None, None, None) => Filter::All,
    })
}

/// One subscriber's way through EVENTS: the past in chunks, then what the broadcaster sends.
struct Subscription {
    feed: Feed,
    wanted: Filter,
    after: Option<Position>,
    heard: Option<Box<Received>>,
    /// The buffered frames, shared with all who get it.
    first: VecDeque<Bytes>,
    begun: bool,
    /// When the next chunk may be sent.
    next_chunk: Instant,
}

impl Subscription {
    /// The next bytes, and whether more follow.
    async fn next(&mut self) -> (Bytes, bool) {
        if !self.begun {
            self.begun = true;
            return (format!("retry: {RETRY_MS}\n\n").into(), true);
        }
        if let Some(first) = self.first.pop_front() {
            let mut chunk = first.to_vec();
            while chunk.len() < CHUNK_BYTES
                && let Some(frame) = self.first.pop_front()
            {
                chunk.extend_from_slice(&frame);
            }
            return (chunk.into(), true);
        }
        let stop = self.feed.broadcaster.stop.clone();
        let Some(heard) = &mut self.heard else {
            return tokio::select! {
                () = stop.cancelled() => (Bytes::new(), false),
                chunk = self.catch_up() => (chunk, true),
            };
        };
        let mut beat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return (Bytes::new(), false),
                chunk = coalesce(heard, self.next_chunk) => return match chunk {
                    Some(chunk) => {
                        self.next_chunk = Instant::now() + CHUNK_EVERY;
                        (chunk, true)
                    }
                    None => (lagged(), false),
                },
                _ = beat.tick() => {
                    // An id alone is no event, but where to go on from.
                    if let Some(up_to) = heard.up_to() {
                        return (format!(": alive\nid: {up_to}\n\n").into(), true);
                    }
                }
            }
        }
    }

    /// Joins the broadcaster, or reads a chunk of older events.
    async fn catch_up(&mut self) -> Bytes {
        match self.feed.broadcaster.join(&self.wanted, self.after) {
            JoinResult::From(first, heard) => {
                self.heard = Some(heard);
                self.first = first.into();
                return Bytes::new();
            }
            JoinResult::Elsewhere => {}
        }
        let (Some(after), Some(next)) = (self.after, self.feed.broadcaster.next()) else {
            tokio::time::sleep(PAUSE).await;
            return Bytes::new();
        };
        match self.feed.backfill.read(&self.wanted, after, next.saturating_sub(1)).await {
            Ok(chunk) => {
                if chunk.up_to == after {
                    // This edge is behind what the client has: it catches up in a moment.
                    tokio::time::sleep(PAUSE).await;
                }
                self.after = Some(chunk.up_to);
                chunk.frames.concat().into()
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "EVENTS not read, trying again");
                tokio::time::sleep(PAUSE).await;
                Bytes::new()
            }
        }
    }
}

/// The next events, sent at `not_before` or later, together with those that have arrived meanwhile.
async fn coalesce(heard: &mut Received, not_before: Instant) -> Option<Bytes> {
    tokio::time::sleep_until(not_before).await;
    let first = heard.next().await?;
    let Some(second) = heard.next_at_hand() else { return Some(first) };
    let mut chunk = [first, second].concat();
    while chunk.len() < CHUNK_BYTES
        && let Some(more) = heard.next_at_hand()
    {
        chunk.extend_from_slice(&more);
    }
    Some(chunk.into())
}

/// The last event of a subscriber that reads more slowly than jobs change.
fn lagged() -> Bytes {
    let text = "events came faster than they were read: connect again with the last id";
    frame(None, "lagged", &json!({ "message": text }))
}
