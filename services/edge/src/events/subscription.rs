//! One subscriber's stream of events.

use std::{collections::VecDeque, time::Duration};

use axum::body::Bytes;
use futures_util::{Stream, StreamExt, stream};
use job::Position;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Feed,
    broadcaster::{JoinResult, Received},
    filter::Filter,
    frame::frame,
};

/// How often an idle stream sends a comment with its position.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long to wait before EVENTS is read again after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How soon after a chunk the next one is sent: a single event is sent at once, many in a row
/// together, because each chunk costs both sides a system call.
const CHUNK_EVERY: Duration = Duration::from_millis(50);
/// A chunk of this many bytes gets no further events.
const CHUNK_BYTES: usize = 64 << 10;
/// How soon a client should reconnect, in ms.
const RETRY_MS: u32 = 1_000;

/// One subscriber: missed events in chunks, then the ones that the broadcaster sends.
pub(crate) struct Subscription {
    feed: Feed,
    filter: Filter,
    after: Option<Position>,
    received: Option<Box<Received>>,
    /// The buffered frames, shared with all subscribers that receive them.
    first: VecDeque<Bytes>,
    is_started: bool,
    /// When the next chunk may be sent.
    next_chunk: Instant,
}

impl Subscription {
    /// Subscribes to the events that pass `filter` behind the position `after`; to those from now on
    /// if there is none.
    pub fn new(feed: Feed, filter: Filter, after: Option<Position>) -> Self {
        Self {
            feed,
            filter,
            after,
            received: None,
            first: VecDeque::new(),
            is_started: false,
            next_chunk: Instant::now(),
        }
    }

    /// The text of the event stream, in chunks.
    pub fn into_chunks(self) -> impl Stream<Item = Bytes> {
        let chunks = stream::unfold(Some(self), |subscription| async {
            let mut subscription = subscription?;
            let (chunk, goes_on) = subscription.next().await;
            Some((chunk, goes_on.then_some(subscription)))
        });
        chunks.filter(|chunk| std::future::ready(!chunk.is_empty()))
    }

    /// The next bytes, and whether more follow.
    async fn next(&mut self) -> (Bytes, bool) {
        if !self.is_started {
            self.is_started = true;
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
        let Some(received) = &mut self.received else {
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
                chunk = coalesce(received, self.next_chunk) => return match chunk {
                    Some(chunk) => {
                        self.next_chunk = Instant::now() + CHUNK_EVERY;
                        (chunk, true)
                    }
                    None => (lagged(), false),
                },
                _ = beat.tick() => {
                    // An id alone is no event, but where to go on from.
                    if let Some(up_to) = received.up_to() {
                        return (format!(": alive\nid: {up_to}\n\n").into(), true);
                    }
                }
            }
        }
    }

    /// Joins the broadcaster, or reads a chunk of older events.
    async fn catch_up(&mut self) -> Bytes {
        match self.feed.broadcaster.join(&self.filter, self.after) {
            JoinResult::From(first, received) => {
                self.received = Some(received);
                self.first = first.into();
                return Bytes::new();
            }
            JoinResult::Elsewhere => {}
        }
        let (Some(after), Some(next)) = (self.after, self.feed.broadcaster.next()) else {
            tokio::time::sleep(PAUSE).await;
            return Bytes::new();
        };
        match self.feed.backfill.read(&self.filter, after, next.saturating_sub(1)).await {
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
async fn coalesce(received: &mut Received, not_before: Instant) -> Option<Bytes> {
    tokio::time::sleep_until(not_before).await;
    let first = received.next().await?;
    let Some(second) = received.next_at_hand() else { return Some(first) };
    let mut chunk = [first, second].concat();
    while chunk.len() < CHUNK_BYTES
        && let Some(more) = received.next_at_hand()
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
