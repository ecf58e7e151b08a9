//! Backfill: older events, read from EVENTS by a few readers, one chunk each.

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use job::Position;
use nats::{Broker, names, stream_reader::StreamReader, wire};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{broadcaster::gap, filter::Filter, frame::Message};

/// Readers at the same time.
const READERS_MAX: usize = 4;
/// Events of a chunk, after which it is handed over.
const CHUNK_EVENTS_MAX: usize = 500;
/// Messages that one reader reads.
const CHUNK_MESSAGES_MAX: u64 = 5_000;
/// How long the next message may take.
const STALL: Duration = Duration::from_secs(5);

/// The readers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Backfill {
    broker: Broker,
    readers: Arc<Semaphore>,
}

/// A part of the past.
pub(super) struct Chunk {
    pub frames: Vec<Bytes>,
    /// How far it reaches.
    pub up_to: Position,
}

impl Backfill {
    pub fn new(broker: Broker) -> Self {
        Self { broker, readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// Reads what came after a position, at most up to message `end`, which is there.
    ///
    /// # Errors
    /// If EVENTS cannot be read.
    pub async fn read(&self, wanted: &Filter, after: Position, end: u64) -> anyhow::Result<Chunk> {
        let _reader = self.readers.acquire().await?;
        let (first, last) = self.broker.bounds(names::EVENTS).await?;
        let from = after.sequence.saturating_add(u64::from(after.is_end()));
        if after.sequence > last {
            // The cursor belongs to an earlier stream of the same name.
            return Ok(Chunk { frames: vec![gap(from, last)], up_to: Position::end_of(end) });
        }
        let mut chunk = Chunk { frames: Vec::new(), up_to: after };
        // Before the first message there was none.
        if from.max(1) < first {
            chunk.frames.push(gap(from, first - 1));
            chunk.up_to = Position::end_of(first - 1);
        }
        let start = from.max(first);
        let mut next = start;
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let mut events = StreamReader::start(self.broker.clone(), names::EVENTS, next, stop);
        while next <= end
            && chunk.frames.len() < CHUNK_EVENTS_MAX
            && next < start + CHUNK_MESSAGES_MAX
        {
            let message = tokio::time::timeout(STALL, events.recv()).await??;
            if message.skipped > 0 {
                chunk.frames.push(gap(message.sequence - message.skipped, message.sequence - 1));
            }
            let headers = message.headers.as_ref();
            let lines = match wire::events(message.sequence, headers, &message.payload) {
                Ok((_, batch)) => Message::of(message.sequence, &batch).lines,
                Err(wire::Malformed::Newer { .. }) => {
                    chunk.frames.push(gap(message.sequence, message.sequence));
                    Vec::new()
                }
                // State sets it aside.
                Err(_) => Vec::new(),
            };
            let new = lines.iter().filter(|frame| frame.position > after && wanted.wants(frame));
            chunk.frames.extend(new.map(|frame| frame.frame.clone()));
            chunk.up_to = Position::end_of(message.sequence);
            next = message.sequence + 1;
        }
        Ok(chunk)
    }
}
