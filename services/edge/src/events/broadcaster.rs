//! One follower of EVENTS, which serves all subscribers of this edge.
//!
//! A change finds its subscribers by job, batch and project, so that two thousand subscribers cost
//! no more than the events they get. Recent messages are buffered, so that a client that resumes
//! soon needs no reader of its own; without subscribers they are not even parsed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Bytes;
use job::Position;
use nats::{Broker, names, query::ReadToken, stream_reader::StreamReader, wire};
use serde_json::json;
use service::BackgroundTask;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    buffered::Buffered,
    filter::Filter,
    frame::{Frame, Message, frame},
};

/// Distributes events to subscribers.
pub(crate) const DISTRIBUTION: BackgroundTask = BackgroundTask::new("events");
/// Messages of EVENTS that a subscriber may be behind.
const BEHIND_MESSAGES_MAX: usize = 1_024;
/// Bytes of them; a single message may have more.
const BEHIND_BYTES_MAX: usize = 512 << 10;
/// Changes that are buffered for those who come back.
const KEPT_LINES_MAX: usize = 20_000;
/// Bytes of them.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Messages of EVENTS that are buffered, also those without a change.
const KEPT_MESSAGES_MAX: usize = 20_000;
/// Messages before the end that are read at the start, for those who come back to a new edge.
const WARM_MESSAGES: u64 = 512;
/// How long to wait before the end of EVENTS is asked for again.
const PAUSE: Duration = Duration::from_millis(250);

/// A handle to the broadcaster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Broadcaster {
    inner: Arc<Mutex<Inner>>,
    subscribers: Arc<AtomicU64>,
    pub(super) broker: Broker,
    /// What clients of this edge have seen.
    seen: ReadToken,
    pub(super) stop: CancellationToken,
}

#[derive(Default)]
struct Inner {
    /// The first message that is not distributed yet.
    next: u64,
    /// End of EVENTS when this edge started. Subscribers without a cursor start after it.
    before: u64,
    buffered: VecDeque<Buffered>,
    buffered_frames: usize,
    buffered_bytes: usize,
    subscribers: HashMap<u64, Subscriber>,
    /// The subscribers of each filter.
    by_filter: HashMap<Filter, Vec<u64>>,
    /// Whether the end of EVENTS is known.
    open: bool,
}

struct Subscriber {
    filter: Filter,
    /// The last position that it got.
    after: Position,
    chunks: mpsc::Sender<Bytes>,
    /// Bytes that it was sent and has not taken.
    behind: Arc<AtomicUsize>,
}

impl Subscriber {
    /// Sends matching frames; `false` if the subscriber is too far behind.
    fn send(&self, chunk: Bytes) -> bool {
        let bytes = chunk.len();
        let behind = self.behind.fetch_add(bytes, Ordering::Relaxed);
        let fits = behind == 0 || behind + bytes <= BEHIND_BYTES_MAX;
        let is_sent = fits && self.chunks.try_send(chunk).is_ok();
        if !is_sent {
            self.behind.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_sent
    }
}

/// The events of one subscriber, until it is dropped.
pub(super) struct Received {
    id: u64,
    broadcaster: Broadcaster,
    chunks: mpsc::Receiver<Bytes>,
    behind: Arc<AtomicUsize>,
}

impl Drop for Received {
    fn drop(&mut self) {
        self.broadcaster.lock().remove(self.id);
    }
}

impl Received {
    /// The next events, one or more; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.recv().await?;
        self.behind.fetch_sub(chunk.len(), Ordering::Relaxed);
        Some(chunk)
    }

    /// The next events, if some are queued.
    pub fn next_at_hand(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.try_recv().ok()?;
        self.behind.fetch_sub(chunk.len(), Ordering::Relaxed);
        Some(chunk)
    }

    /// True at the end of the events.
    pub fn is_over(&self) -> bool {
        self.chunks.is_closed()
    }

    /// The position up to which this subscriber got everything, if its queue is empty.
    pub fn up_to(&self) -> Option<Position> {
        let inner = self.broadcaster.lock();
        // The broadcaster sends under the same lock.
        self.chunks.is_empty().then(|| Position::end_of(inner.next.saturating_sub(1)))
    }
}

/// Whether the broadcaster can resume from a position.
pub(super) enum JoinResult {
    /// It does: these come first.
    From(Vec<Bytes>, Box<Received>),
    /// The messages after the position are not in the buffer.
    Elsewhere,
}

impl Broadcaster {
    /// Starts to follow EVENTS.
    pub fn start(broker: Broker, seen: ReadToken, stop: CancellationToken) -> Self {
        let (inner, subscribers) = (Arc::default(), Arc::default());
        let broadcaster = Self { inner, subscribers, broker, seen, stop };
        tokio::spawn(feed(broadcaster.clone()));
        broadcaster
    }

    /// Joins a subscriber who wants what comes from now on, or what came after a position.
    pub(super) fn join(&self, filter: &Filter, after: Option<Position>) -> JoinResult {
        let mut inner = self.lock();
        let now = Position::new(inner.before.max(inner.next.saturating_sub(1)), u32::MAX);
        let after = after.unwrap_or(now);
        if after < now {
            inner.read_kept();
        }
        let first_buffered = inner.buffered.front().map_or(inner.next, Buffered::sequence);
        // The rest of the message of the position itself is sent too, if it has any.
        let first_wanted = after.sequence.saturating_add(u64::from(after.index == u32::MAX));
        // One from beyond the end is of another stream, or this edge is behind: EVENTS tells.
        if !inner.open || first_wanted < first_buffered || first_wanted > inner.next {
            return JoinResult::Elsewhere;
        }
        let buffered = inner.buffered.iter().flat_map(Buffered::lines);
        let buffered = buffered.filter(|frame| frame.position > after && filter.wants(frame));
        let first: Vec<Bytes> = buffered.map(|frame| frame.frame.clone()).collect();
        let (chunks, heard) = mpsc::channel(BEHIND_MESSAGES_MAX);
        let behind = Arc::<AtomicUsize>::default();
        let id = self.subscribers.fetch_add(1, Ordering::Relaxed);
        inner.by_filter.entry(filter.clone()).or_default().push(id);
        let subscriber =
            Subscriber { filter: filter.clone(), after, chunks, behind: behind.clone() };
        inner.subscribers.insert(id, subscriber);
        JoinResult::From(
            first,
            Box::new(Received { id, broadcaster: self.clone(), chunks: heard, behind }),
        )
    }

    /// The first message that is not distributed yet; `None` before the end of EVENTS is known.
    pub(super) fn next(&self) -> Option<u64> {
        let inner = self.lock();
        inner.open.then_some(inner.next)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn distribute(&mut self, mut message: Buffered) {
        let sequence = message.sequence();
        self.next = sequence + 1;
        // Most edges have no subscriber.
        if self.by_filter.is_empty() {
            return self.keep(message);
        }
        // Subscribers that joined meanwhile find it unparsed.
        message.read();
        let mut matching: HashMap<Filter, Vec<&Frame>> = HashMap::new();
        for frame in message.lines() {
            let keys = [
                Filter::All,
                Filter::Project(frame.project.clone()),
                Filter::Batch(frame.project.clone(), frame.batch.clone()),
                Filter::Job(frame.job, None),
                Filter::Job(frame.job, Some(frame.project.clone())),
            ];
            for key in keys {
                if self.by_filter.contains_key(&key) {
                    matching.entry(key).or_default().push(frame);
                }
            }
        }
        let mut cut = Vec::new();
        for (filter, lines) in &matching {
            // Written once for all who want the same.
            let all = coalesce(lines.iter());
            for id in self.by_filter.get(filter).into_iter().flatten() {
                let Some(to) = self.subscribers.get(id) else { continue };
                let chunk = if to.after.sequence < sequence {
                    all.clone()
                } else {
                    coalesce(lines.iter().filter(|frame| frame.position > to.after))
                };
                if !chunk.is_empty() && !to.send(chunk) {
                    cut.push(*id);
                }
            }
        }
        // Its channel ends here: the subscriber learns it after reading the queued events.
        cut.into_iter().for_each(|id| self.remove(id));
        self.keep(message);
    }

    fn keep(&mut self, message: Buffered) {
        self.buffered_frames += message.lines().len();
        self.buffered_bytes += message.bytes();
        self.buffered.push_back(message);
        self.trim();
    }

    /// Parses a buffered message for a subscriber.
    fn read_kept(&mut self) {
        self.buffered.iter_mut().for_each(Buffered::read);
        self.buffered_frames = self.buffered.iter().map(|message| message.lines().len()).sum();
        self.buffered_bytes = self.buffered.iter().map(Buffered::bytes).sum();
        self.trim();
    }

    fn trim(&mut self) {
        while (self.buffered_frames > KEPT_LINES_MAX
            || self.buffered_bytes > KEPT_BYTES_MAX
            || self.buffered.len() > KEPT_MESSAGES_MAX)
            && let Some(old) = self.buffered.pop_front()
        {
            self.buffered_frames -= old.lines().len();
            self.buffered_bytes -= old.bytes();
        }
    }

    /// Ends all subscriptions and forgets what was buffered: clients connect again with their last id.
    fn start_over(&mut self) {
        *self = Self::default();
    }

    /// Notifies all subscribers that some messages were deleted.
    fn tell_gap(&mut self, from: u64, to: u64) {
        let frame = gap(from, to);
        let untold = self.subscribers.iter().filter(|(_, to)| !to.send(frame.clone()));
        let cut: Vec<u64> = untold.map(|(id, _)| *id).collect();
        cut.into_iter().for_each(|id| self.remove(id));
        self.buffered.clear();
        self.buffered_frames = 0;
        self.buffered_bytes = 0;
    }

    fn remove(&mut self, id: u64) {
        let Some(gone) = self.subscribers.remove(&id) else { return };
        if let Some(ids) = self.by_filter.get_mut(&gone.filter) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_filter.remove(&gone.filter);
            }
        }
    }
}

/// The events of some lines, in one piece.
fn coalesce<'a>(mut lines: impl Iterator<Item = &'a &'a Frame>) -> Bytes {
    let Some(first) = lines.next() else { return Bytes::new() };
    let Some(second) = lines.next() else { return first.frame.clone() };
    let mut all = [&first.frame[..], &second.frame].concat();
    for frame in lines {
        all.extend_from_slice(&frame.frame);
    }
    all.into()
}

/// Reports that requested messages of EVENTS are no longer retained.
pub(super) fn gap(from: u64, to: u64) -> Bytes {
    let text = "these changes are no longer buffered: ask for the status of what you follow";
    frame(None, "gap", &json!({ "from": from, "to": to, "message": text }))
}

/// Distributes EVENTS until the edge stops; starts over at its end if it cannot continue.
async fn feed(broadcaster: Broadcaster) {
    loop {
        if let Err(error) = distribute(&broadcaster).await {
            if broadcaster.stop.is_cancelled() {
                return;
            }
            DISTRIBUTION.failed(&error);
            tracing::warn!(error = format!("{error:#}"), "events not distributed, starting over");
        }
        broadcaster.lock().start_over();
        tokio::select! {
            () = broadcaster.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn distribute(broadcaster: &Broadcaster) -> anyhow::Result<()> {
    let (first, end) = broadcaster.broker.bounds(names::EVENTS).await?;
    let start = first.max(end.saturating_sub(WARM_MESSAGES)).max(1);
    {
        let mut inner = broadcaster.lock();
        inner.next = start;
        inner.before = end;
        inner.open = true;
    }
    DISTRIBUTION.succeeded();
    let mut next = start;
    let mut events = StreamReader::start(
        broadcaster.broker.clone(),
        names::EVENTS,
        start,
        broadcaster.stop.clone(),
    );
    loop {
        let message = events.recv().await?;
        anyhow::ensure!(
            message.sequence == next + message.skipped,
            "EVENTS {next} to {} are in the stream and were not read",
            message.sequence - 1
        );
        next = message.sequence + 1;
        // A subscriber that queries after this event gets at least as much.
        broadcaster.seen.note(message.sequence);
        // Its own copy: a part of a buffer would keep the whole of it.
        let payload = Bytes::copy_from_slice(&message.payload);
        let sequence = message.sequence;
        let headers = message.headers.as_ref();
        let is_readable = wire::readable(names::EVENTS, sequence, headers).is_ok();
        let mut buffered = if is_readable && wire::is_append(sequence, headers) {
            Buffered::Unread { sequence, payload }
        } else {
            Buffered::Read(Message { sequence, lines: Vec::new() })
        };
        let is_wanted = !broadcaster.lock().by_filter.is_empty();
        if is_wanted {
            // Not behind the lock: it may be megabytes.
            buffered.read();
        }
        let mut inner = broadcaster.lock();
        if message.skipped > 0 {
            inner.tell_gap(message.sequence - message.skipped, message.sequence - 1);
        }
        if !is_readable {
            inner.tell_gap(sequence, sequence);
        }
        inner.distribute(buffered);
        drop(inner);
        DISTRIBUTION.succeeded();
    }
}
