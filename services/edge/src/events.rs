//! GET /api/queue/events: changes of jobs as server-sent events.
//!
//! The id of an event is its position in EVENTS, the same on every edge and after any restart:
//! who comes back with the last one it has seen (`Last-Event-ID`) misses nothing and hears
//! nothing twice. What it missed comes from what the [hub] keeps, else from EVENTS. Who reads
//! slower than jobs change is cut off with an event that says so; nothing is held for it.

pub(crate) mod hub;
mod line;
mod past;

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
use hub::{Heard, Hub, Joined, Wanted};
use line::frame;
use past::Past;

/// How often a silent stream shows that it lives, and how far it is.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long to wait before EVENTS is read again after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How soon behind a chunk the next one goes out: at rest an event goes at once, of many in a row
/// those of this while go together, for each chunk costs both sides a system call.
const CHUNK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of a chunk after which no more are added.
const CHUNK_BYTES: usize = 64 << 10;
/// How soon a client is to come back, in ms.
const RETRY_MS: u32 = 1_000;

/// A handle to all that follows jobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Feed {
    hub: Hub,
    past: Past,
}

impl Feed {
    /// Starts to follow EVENTS; `seen` notes what subscribers are told of.
    pub fn start(
        broker: mesh::Broker,
        seen: mesh::ask::Seen,
        stop: tokio_util::sync::CancellationToken,
    ) -> Self {
        Self { hub: Hub::start(broker.clone(), seen, stop), past: Past::new(broker) }
    }

    /// Whether the edge stops.
    pub fn is_stopping(&self) -> bool {
        self.hub.stop.is_cancelled()
    }

    /// Waits until the edge stops.
    pub async fn stopping(&self) {
        self.hub.stop.cancelled().await;
    }

    /// What one job does from now on.
    pub fn job(&self, job: JobId) -> Option<Changes> {
        match self.hub.join(&Wanted::Job(job, None), None) {
            Joined::From(_, heard) => Some(Changes(heard)),
            Joined::Elsewhere => None,
        }
    }
}

/// Tells that a job changed.
pub(crate) struct Changes(Box<Heard>);

impl Changes {
    /// Waits for the next change, or for the end of such news.
    pub async fn next(&mut self) {
        self.0.next().await;
    }

    /// Whether no more news comes.
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

fn wanted(project: Option<Id>, batch: Option<Id>, job: Option<JobId>) -> Result<Wanted, Error> {
    Ok(match (project, batch, job) {
        (_, Some(_), Some(_)) => {
            return Err(Error::invalid("batchId and jobId exclude each other"));
        }
        (None, Some(_), _) => return Err(Error::missing("projectId, with batchId,")),
        (project, None, Some(job)) => Wanted::Job(job, project),
        (Some(project), Some(batch), None) => Wanted::Batch(project, batch),
        (Some(project), None, None) => Wanted::Project(project),
        (None, None, None) => Wanted::All,
    })
}

/// One subscriber's way through EVENTS: the past in chunks, then what the hub distributes.
struct Subscription {
    feed: Feed,
    wanted: Wanted,
    after: Option<Position>,
    heard: Option<Box<Heard>>,
    /// What the hub had kept, shared with all who get it.
    first: VecDeque<Bytes>,
    begun: bool,
    /// When the next chunk from the hub may go out.
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
        let stop = self.feed.hub.stop.clone();
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
                chunk = gather(heard, self.next_chunk) => return match chunk {
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

    /// Joins the hub, or reads a chunk of what was before.
    async fn catch_up(&mut self) -> Bytes {
        match self.feed.hub.join(&self.wanted, self.after) {
            Joined::From(first, heard) => {
                self.heard = Some(heard);
                self.first = first.into();
                return Bytes::new();
            }
            Joined::Elsewhere => {}
        }
        let (Some(after), Some(next)) = (self.after, self.feed.hub.next()) else {
            tokio::time::sleep(PAUSE).await;
            return Bytes::new();
        };
        match self.feed.past.read(&self.wanted, after, next.saturating_sub(1)).await {
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

/// The next events, from `not_before` on, with those that are there by then.
async fn gather(heard: &mut Heard, not_before: Instant) -> Option<Bytes> {
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

/// The last that a subscriber hears who does not read as fast as jobs change.
fn lagged() -> Bytes {
    let text = "events came faster than they were read: connect again with the last id";
    frame(None, "lagged", &json!({ "message": text }))
}
