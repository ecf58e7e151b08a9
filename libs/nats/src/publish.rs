//! Publishing to a stream, and what the broker's answer means.
//!
//! The client library's own publisher hides some error codes and knows no atomic batches, so
//! the answer is read here. An answer that does not come means "unknown", never "no": the
//! message may be stored, or may yet be when the connection is back.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, Subject, client::RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{Broker, servers::FAILING_FOR};

/// How long an answer to a publish is waited for.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The same at the first attempt, if a repeat is harmless: a server that stopped leading never answers.
pub(crate) const FIRST_ACK_TIMEOUT: Duration = Duration::from_millis(500);
/// A message that is repeated often while the broker does not answer has at most this many bytes.
pub(crate) const SMALL_BYTES: usize = 256 * 1024;
/// The pause between two attempts.
pub(crate) const REPEAT_PAUSE: Duration = Duration::from_millis(100);
/// For how long the leader repeats a write that the broker does not confirm.
pub(crate) const REPEAT_FOR: Duration = Duration::from_secs(15);
/// The most messages that the broker accepts in one atomic batch.
pub const BATCH_MESSAGES_MAX: usize = 1_000;

/// The last sequence was not the expected one.
pub const WRONG_LAST_SEQUENCE: u64 = 10_071;
/// Another message that expects the same last sequence is being stored.
pub(crate) const SEQUENCE_IN_USE: u64 = 10_164;
/// A message, or one of its subject, is there already, or the stream is full.
pub const LIMITS: u64 = 10_077;
/// A message id came before.
pub const DUPLICATE_ID: u64 = 10_201;

/// JetStream is not available, the server does not lead, a message with the same id or the same expectation is being
/// stored, or the first messages of a batch went to another leader.
const MAY_PASS: [u64; 5] = [10_008, 10_009, 10_158, SEQUENCE_IN_USE, 10_176];

/// How many messages to one stream are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// All or none, in an atomic batch: one fsync, but the broker writes each message twice.
    Atomic,
    /// Each for itself, one behind the other, with the last one's answer for all: for a stream of
    /// one replica where the broker acks before it syncs.
    Pipelined,
}

/// A message to be published.
#[derive(Clone, Debug)]
pub struct Message {
    /// The subject.
    pub subject: Subject,
    /// Its headers.
    pub headers: HeaderMap,
    /// What it says.
    pub payload: Bytes,
}

/// The broker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The stream sequence of the message; of the last one of a batch.
    pub sequence: u64,
    /// Whether a message with the same id was stored before, and this one was not.
    pub duplicate: bool,
}

/// The broker does not have it, or that is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker refused the message.
    #[error("the broker refused a message to {subject}: {description} ({code})")]
    Refused {
        /// The subject.
        subject: String,
        /// JetStream's error code.
        code: u64,
        /// JetStream's own words.
        description: String,
    },
    /// No stream takes messages of this subject.
    #[error("no stream takes messages to {subject}")]
    NoStream {
        /// The subject.
        subject: String,
    },
    /// The connection was lost before the answer: the message may be stored or not.
    #[error("no answer to a message to {subject}: it may be stored or not")]
    Unknown {
        /// The subject.
        subject: String,
    },
    /// No answer came in time: the message may be stored or not.
    #[error("no answer in time to a message to {subject}: it may be stored or not")]
    Unanswered {
        /// The subject.
        subject: String,
    },
}

/// The attempts to store a message whose repeat is harmless.
pub(crate) struct Attempts {
    began: Instant,
    patience: Duration,
    most: Duration,
}

impl Attempts {
    /// No attempt yet.
    pub fn new() -> Self {
        Self::within(ACK_TIMEOUT)
    }

    /// No attempt yet; none will wait longer than `most`.
    pub fn within(most: Duration) -> Self {
        Self { began: Instant::now(), patience: FIRST_ACK_TIMEOUT / 2, most }
    }

    /// How long the next attempt waits for its answer: twice as long as the one before.
    pub fn next_patience(&mut self) -> Duration {
        self.patience = (self.patience * 2).min(self.most);
        self.patience
    }

    /// Since the first attempt.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Error {
    /// Whether the broker refused the message with this code.
    pub fn is(&self, wanted: u64) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    /// Whether the message may be stored or not.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Unanswered { .. })
    }

    /// Whether the broker may store the message at the next attempt: there is no leader of the stream, or no answer.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Refused { code, .. } => MAY_PASS.contains(code),
            Self::NoStream { .. } | Self::Unknown { .. } | Self::Unanswered { .. } => true,
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Broker {
    /// Publishes one message and waits until the broker has it on disk (as its sync interval says).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish(&self, message: Message) -> Result<Ack, Error> {
        let published = self.publish_within(message, ACK_TIMEOUT).await;
        if let Err(Error::Unanswered { subject }) = &published {
            self.report_unstored(subject).await;
        }
        published
    }

    /// The same, with a time within which the broker has to answer.
    pub(crate) async fn publish_within(
        &self,
        message: Message,
        patience: Duration,
    ) -> Result<Ack, Error> {
        let began = Instant::now();
        let mut publishing = pin!(self.publish_unnoted(message, patience));
        let published = match timeout(FAILING_FOR, publishing.as_mut()).await {
            Ok(published) => published,
            Err(_) => {
                self.servers.note_failure(began);
                publishing.await
            }
        };
        match &published {
            // The connection was lost, or the client sends nothing.
            Err(Error::Unknown { .. }) => {}
            Err(error) if error.may_pass() => self.servers.note_failure(began),
            _ => self.servers.note_answer(),
        }
        published
    }

    async fn publish_unnoted(&self, message: Message, patience: Duration) -> Result<Ack, Error> {
        let subject = message.subject.clone();
        let request = async_nats::Request::new()
            .headers(message.headers)
            .payload(message.payload)
            .timeout(Some(patience));
        let unknown = || Error::Unknown { subject: subject.to_string() };
        let lost = self.answer_lost();
        // The wait for a free place in the client's own queue is inside this limit too.
        let sent = timeout(patience * 2, self.client.send_request(subject.clone(), request));
        let sent = tokio::select! {
            sent = sent => sent,
            () = lost => return Err(unknown()),
        };
        let answer = match sent {
            Err(_) => return Err(unknown()),
            Ok(Err(error)) if error.kind() == RequestErrorKind::TimedOut => {
                return Err(Error::Unanswered { subject: subject.to_string() });
            }
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(Error::NoStream { subject: subject.to_string() });
            }
            Ok(Err(_)) => return Err(unknown()),
            Ok(Ok(answer)) => answer,
        };
        let answer: Answer = serde_json::from_slice(&answer.payload).map_err(|_| unknown())?;
        match answer.error {
            None => Ok(Ack { sequence: answer.seq, duplicate: answer.duplicate }),
            Some(refusal) => Err(Error::Refused {
                subject: subject.to_string(),
                code: refusal.err_code,
                description: refusal.description,
            }),
        }
    }

    /// Publishes messages to one stream, all or none (ADR-50). Their sequences follow each other
    /// and end with that of the answer. One message needs no batch and goes alone.
    ///
    /// # Errors
    /// See [`Error`]; none of the messages is stored then, unless the outcome is unknown.
    ///
    /// # Panics
    /// With no message, or with more than [`BATCH_MESSAGES_MAX`].
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Result<Ack, Error> {
        self.publish_batch_within(messages, ACK_TIMEOUT).await
    }

    /// The same, with a time within which the broker has to answer.
    pub(crate) async fn publish_batch_within(
        &self,
        mut messages: Vec<Message>,
        patience: Duration,
    ) -> Result<Ack, Error> {
        assert!((1..=BATCH_MESSAGES_MAX).contains(&messages.len()), "{} messages", messages.len());
        let mut last = messages.pop().expect("there is at least one message");
        if messages.is_empty() {
            return self.publish_within(last, patience).await;
        }
        let batch = Uuid::now_v7().simple().to_string();
        let count = messages.len() + 1;
        for (sequence, mut message) in (1..).zip(messages) {
            number(&mut message.headers, &batch, sequence);
            self.send(message).await?;
        }
        number(&mut last.headers, &batch, count);
        last.headers.insert(async_nats::header::NATS_BATCH_COMMIT, "1");
        self.publish_within(last, patience).await
    }
}

impl Broker {
    /// Publishes messages to one stream, one by one, and waits for the answer to the last. The
    /// broker may refuse others without notice: a caller that needs to know expects a sequence.
    ///
    /// # Errors
    /// See [`Error`], of the last message.
    ///
    /// # Panics
    /// With no message.
    pub async fn publish_each(&self, mut messages: Vec<Message>) -> Result<Ack, Error> {
        let last = messages.pop().expect("there is at least one message");
        for message in messages {
            self.send(message).await?;
        }
        self.publish(last).await
    }

    /// Hands a message to the client without waiting for an answer.
    async fn send(&self, message: Message) -> Result<(), Error> {
        let Message { subject, headers, payload } = message;
        let sent = self.client.publish_with_headers(subject.clone(), headers, payload).await;
        sent.map_err(|_| Error::Unknown { subject: subject.to_string() })
    }
}

fn number(headers: &mut HeaderMap, batch: &str, sequence: usize) {
    headers.insert(async_nats::header::NATS_BATCH_ID, batch);
    headers.insert(async_nats::header::NATS_BATCH_SEQUENCE, sequence.to_string());
}
