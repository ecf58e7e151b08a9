//! A reader of a stream that keeps its own place.
//!
//! The broker forgets ephemeral consumers when it restarts, and an ordered consumer of the client
//! library that had received nothing came back at sequence 1. So the place is held here: whatever
//! happens, reading goes on at `next`, what is below is dropped, and a jump is reported.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
};
use bytes::Bytes;
use futures_util::StreamExt;
use job::time::Millis;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::Broker;

/// How long the broker may be silent before the consumer is made anew: two missed heartbeats.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the broker keeps the consumer of a reader that went away.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);
/// How long to wait before a consumer is made anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);
/// Messages read ahead: by the client, and in the channel to the reader.
const AHEAD_MESSAGES_MAX: usize = 64;
/// Bytes read ahead by the client; more than the largest message.
const AHEAD_BYTES_MAX: usize = 16 << 20;
/// Bytes in the channel to the reader, in KiB.
const ROOM_KIB: u32 = 16 << 10;

/// A message of the stream.
#[derive(Debug)]
pub struct Message {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the broker stored it.
    pub at: Millis,
    /// How many messages before it were not there: they were purged.
    pub skipped: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// What it says.
    pub payload: Bytes,
    /// Its place among what was read ahead; free once it is dropped.
    _room: OwnedSemaphorePermit,
}

/// Reads `stream` from message `next` on, until `stop` is done or the receiver is dropped.
pub fn follow(
    broker: Broker,
    stream: &'static str,
    next: u64,
    stop: CancellationToken,
) -> mpsc::Receiver<Message> {
    let (messages, reader) = mpsc::channel(AHEAD_MESSAGES_MAX);
    let closed = messages.clone();
    let room = Arc::new(Semaphore::new(ROOM_KIB as usize));
    let mut follower = Follower { broker, stream, next: next.max(1), messages, room };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = closed.closed() => return,
                end = follower.read() => {
                    tracing::debug!(stream, next = follower.next, %end, "consumer ended");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REBUILD_PAUSE) => {}
            }
        }
    });
    reader
}

struct Follower {
    broker: Broker,
    stream: &'static str,
    next: u64,
    messages: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

impl Follower {
    /// Reads with one consumer until that ends, for whatever reason, which it returns.
    async fn read(&mut self) -> String {
        match self.consume().await {
            Ok(end) => end.to_owned(),
            Err(error) => error.to_string(),
        }
    }

    async fn consume(&mut self) -> Result<&'static str, async_nats::Error> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold: INACTIVE_THRESHOLD,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = self.broker.js.create_consumer_on_stream(config, self.stream).await?;
        let mut stream = consumer
            .stream()
            .max_messages_per_batch(AHEAD_MESSAGES_MAX)
            .max_bytes_per_batch(AHEAD_BYTES_MAX)
            .heartbeat(IDLE_HEARTBEAT)
            .expires(Duration::from_secs(10))
            .messages()
            .await?;
        while let Some(message) = stream.next().await {
            let message = message?;
            let info = message.info()?;
            let sequence = info.stream_sequence;
            if sequence < self.next {
                continue;
            }
            let skipped = sequence - self.next;
            let at = i64::try_from(info.published.unix_timestamp_nanos() / 1_000_000)?;
            let async_nats::Message { subject, headers, payload, .. } = message.message;
            let kib = u32::try_from(payload.len() / 1_024 + 1)?.min(ROOM_KIB);
            let Ok(room) = self.room.clone().acquire_many_owned(kib).await else {
                return Ok("its room was closed");
            };
            self.next = sequence + 1;
            let subject = subject.to_string();
            let message = Message { sequence, at, skipped, subject, headers, payload, _room: room };
            if self.messages.send(message).await.is_err() {
                return Ok("its reader went away");
            }
        }
        Ok("its consumer was deleted")
    }
}
