//! Reads a stream in order and keeps its own position, whatever happens to the connection.
//!
//! The broker forgets ephemeral consumers when it restarts, and a consumer that survives a dropped
//! connection continues behind the messages that were in flight. So a jump in sequences proves
//! nothing: it is explained before it is acted on. If the stream still holds the expected message,
//! a new consumer starts there and the jump is never exposed. If the stream starts above it, or the
//! message was deleted, the reader says how many messages it skipped. If the stream no longer holds
//! what was read before, reading ends with [`Error::Rewound`], and the service starts over from its
//! checkpoint.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
        stream::{RawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use job::time::Millis;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::Broker;

/// How long the broker may be silent before the consumer is created again: two missed heartbeats.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the broker keeps the consumer of a reader that went away.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);
/// How long to wait before a consumer is created again.
const RECREATE_PAUSE: Duration = Duration::from_millis(100);
/// How long nothing may arrive before the end of the stream is compared with the position.
const IDLE_CHECK: Duration = Duration::from_secs(5);
/// How long a stream must end below the position before it counts as rewound. A broker that lost
/// its quorum may answer with an older end for the time of an election.
const REWOUND_AFTER: Duration = Duration::from_secs(15);
/// Messages read ahead: by the client, and in the channel to the receiver.
const READ_AHEAD_MESSAGES_MAX: usize = 64;
/// Bytes read ahead by the client; more than the largest message.
const READ_AHEAD_BYTES_MAX: usize = 16 << 20;
/// Bytes in the channel to the receiver, in KiB.
const CHANNEL_KIB_MAX: u32 = 16 << 10;

/// A message of the stream.
#[derive(Debug)]
pub struct Message {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the broker stored it.
    pub at: Millis,
    /// How many messages directly before it the stream no longer holds: purged or deleted.
    pub skipped: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its body.
    pub payload: Bytes,
    /// Its share of the bytes in the channel; released on drop.
    _permit: OwnedSemaphorePermit,
}

/// Why reading cannot continue.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The stream was restored to an older state, or replaced.
    #[error(
        "stream {stream} no longer holds message {read}, which was read before: \
         it was restored to an older state or replaced"
    )]
    Rewound {
        /// The stream.
        stream: &'static str,
        /// The last message that was read.
        read: u64,
    },
    /// The reader was stopped.
    #[error("the reader of stream {0} was stopped")]
    Stopped(&'static str),
}

/// The receiving end of a reader. Dropping it ends the reader.
#[derive(Debug)]
pub struct StreamReader {
    stream: &'static str,
    messages: mpsc::Receiver<Result<Message, Error>>,
}

impl StreamReader {
    /// Reads `stream` from message `next` on, until `stop` is cancelled or the reader is dropped.
    pub fn start(broker: Broker, stream: &'static str, next: u64, stop: CancellationToken) -> Self {
        let (sender, messages) = mpsc::channel(READ_AHEAD_MESSAGES_MAX);
        let bytes = Arc::new(Semaphore::new(CHANNEL_KIB_MAX as usize));
        let task = Task {
            broker,
            stream,
            next: next.max(1),
            last_read: None,
            skipped: 0,
            ends_below_since: None,
            sender,
            bytes,
        };
        tokio::spawn(task.run(stop));
        Self { stream, messages }
    }

    /// The next message. Safe to be cancelled.
    ///
    /// # Errors
    /// See [`Error`]; nothing follows an error.
    pub async fn recv(&mut self) -> Result<Message, Error> {
        self.messages.recv().await.unwrap_or(Err(Error::Stopped(self.stream)))
    }

    /// The next message if it has arrived already; an error is left for [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Option<Message> {
        self.messages.try_recv().ok()?.ok()
    }
}

/// Why a consumer was given up.
enum End {
    /// A new consumer continues.
    Recreate(&'static str),
    /// The receiver was dropped.
    Closed,
}

/// A failure of one consumer: the next one continues, but for [`Error`].
enum Failure {
    Passing(async_nats::Error),
    Final(Error),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

struct Task {
    broker: Broker,
    stream: &'static str,
    /// The next message to be delivered.
    next: u64,
    /// The last message that was delivered, with the time at which the broker stored it (in ns):
    /// together they identify a message across restores.
    last_read: Option<(u64, i128)>,
    /// Messages below `next` that the stream no longer holds, not yet reported to the receiver.
    skipped: u64,
    /// Since when the stream ends below the position.
    ends_below_since: Option<Instant>,
    sender: mpsc::Sender<Result<Message, Error>>,
    bytes: Arc<Semaphore>,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        let closed = self.sender.clone();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                () = closed.closed() => return,
                ended = self.consume() => ended,
            };
            match ended {
                Ok(End::Closed) => return,
                Ok(End::Recreate(why)) => {
                    tracing::debug!(
                        stream = self.stream,
                        next = self.next,
                        why,
                        "consumer recreated"
                    );
                }
                Err(Failure::Passing(error)) => {
                    tracing::debug!(stream = self.stream, next = self.next, %error, "consumer failed");
                }
                Err(Failure::Final(error)) => {
                    // The receiver may be gone.
                    let _ = self.sender.send(Err(error)).await;
                    return;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECREATE_PAUSE) => {}
            }
        }
    }

    /// Delivers messages of one consumer until it has to be replaced.
    async fn consume(&mut self) -> Result<End, Failure> {
        // Subscribed before the consumer exists: messages in flight on a lost connection are lost.
        let mut connects = self.broker.connects();
        connects.mark_unchanged();
        let stream = self.broker.js.get_stream_no_info(self.stream).await?;
        if !self.check_last_read(&stream).await? {
            return Ok(End::Recreate("the stream ends below the position"));
        }
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
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(READ_AHEAD_MESSAGES_MAX)
            .max_bytes_per_batch(READ_AHEAD_BYTES_MAX)
            .heartbeat(IDLE_HEARTBEAT)
            .expires(Duration::from_secs(10))
            .messages()
            .await?;
        loop {
            let message = tokio::select! {
                biased;
                _ = connects.changed() => return Ok(End::Recreate("the connection was replaced")),
                message = messages.next() => message,
                () = tokio::time::sleep(IDLE_CHECK) => {
                    let last = stream.get_info().await?.state.last_sequence;
                    if last >= self.next {
                        tracing::warn!(
                            stream = self.stream,
                            next = self.next,
                            last,
                            "consumer delivered nothing though messages are there"
                        );
                        return Ok(End::Recreate("it delivered nothing"));
                    }
                    if last + 1 < self.next {
                        return Ok(End::Recreate("the stream ends below the position"));
                    }
                    continue;
                }
            };
            let Some(message) = message else {
                return Ok(End::Recreate("it was deleted"));
            };
            let message = message?;
            let info = message.info().map_err(Failure::Passing)?;
            let (sequence, stored_ns) =
                (info.stream_sequence, info.published.unix_timestamp_nanos());
            if sequence < self.next {
                continue;
            }
            if sequence > self.next && !self.skip_missing(&stream, sequence).await? {
                return Ok(End::Recreate("messages were lost in flight"));
            }
            if self.deliver(message.message, sequence, stored_ns).await?.is_none() {
                return Ok(End::Closed);
            }
        }
    }

    /// Checks that the stream still holds the messages that were read; `false` while that is
    /// unknown.
    async fn check_last_read(&mut self, stream: &Stream<()>) -> Result<bool, Failure> {
        let state = stream.get_info().await?.state;
        if state.last_sequence + 1 < self.next {
            let since = *self.ends_below_since.get_or_insert_with(Instant::now);
            if since.elapsed() < REWOUND_AFTER {
                return Ok(false);
            }
            return Err(self.rewound());
        }
        self.ends_below_since = None;
        let Some((sequence, stored_ns)) = self.last_read else { return Ok(true) };
        if sequence < state.first_sequence {
            return Ok(true);
        }
        match stream.get_raw_message(sequence).await {
            Ok(message) if message.time.unix_timestamp_nanos() == stored_ns => Ok(true),
            Ok(_) => Err(self.rewound()),
            // Purged or deleted since.
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn rewound(&self) -> Failure {
        let read = self.last_read.map_or(self.next - 1, |(sequence, _)| sequence);
        Failure::Final(Error::Rewound { stream: self.stream, read })
    }

    /// Moves the position up to `sequence` over messages that the stream no longer holds; `false`
    /// if it holds one of them, from where a new consumer continues.
    async fn skip_missing(&mut self, stream: &Stream<()>, sequence: u64) -> Result<bool, Failure> {
        let first = stream.get_info().await?.state.first_sequence;
        if first > self.next {
            let purged_up_to = first.min(sequence);
            self.skipped += purged_up_to - self.next;
            self.next = purged_up_to;
        }
        while self.next < sequence {
            match stream.get_raw_message(self.next).await {
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    self.skipped += 1;
                    self.next += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Sends a message to the receiver; `None` if the receiver was dropped.
    async fn deliver(
        &mut self,
        message: async_nats::Message,
        sequence: u64,
        stored_ns: i128,
    ) -> Result<Option<()>, Failure> {
        let at = i64::try_from(stored_ns / 1_000_000)?;
        let async_nats::Message { subject, headers, payload, .. } = message;
        let kib = u32::try_from(payload.len() / 1_024 + 1)?.min(CHANNEL_KIB_MAX);
        let Ok(permit) = self.bytes.clone().acquire_many_owned(kib).await else {
            return Ok(None);
        };
        let skipped = std::mem::take(&mut self.skipped);
        self.next = sequence + 1;
        self.last_read = Some((sequence, stored_ns));
        let subject = subject.to_string();
        let message = Message { sequence, at, skipped, subject, headers, payload, _permit: permit };
        Ok(self.sender.send(Ok(message)).await.ok())
    }
}
