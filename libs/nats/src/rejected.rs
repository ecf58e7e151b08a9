//! Messages that no service can process: set aside in a stream of their own, counted there, and
//! never tried again.
//!
//! The subject contains the stream and the sequence of the original message, and each subject holds
//! one message: storing the same message again, after a restart or in another replica, changes
//! nothing.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::{Broker, names, publish::Message, stream_reader, wire::Malformed};

/// How much of a body is kept, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How much of a reason is kept, in characters.
const REASON_CHARS_MAX: usize = 500;
/// Messages that are stored at the same time.
const STORES_MAX: usize = 64;

/// A message that cannot be processed.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The stream it is in.
    pub stream: &'static str,
    /// Its sequence there.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Why it cannot be processed.
    pub reason: String,
    /// Its body.
    pub payload: Bytes,
}

impl Rejected {
    /// A message of EVENTS that cannot be applied.
    pub fn event(message: &stream_reader::Message, why: &Malformed) -> Self {
        Self {
            stream: names::EVENTS,
            sequence: message.sequence,
            subject: message.subject.clone(),
            reason: why.to_string(),
            payload: message.payload.clone(),
        }
    }

    fn message(&self) -> Message {
        let mut headers = HeaderMap::new();
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let reason: String = self.reason.chars().take(REASON_CHARS_MAX).map(plain).collect();
        headers.insert(names::REJECTED_REASON, reason.as_str());
        let subject: String = self.subject.chars().map(plain).collect();
        headers.insert(names::REJECTED_SUBJECT, subject.as_str());
        let payload = self.payload.slice(..self.payload.len().min(BODY_BYTES_MAX));
        let subject: Subject = names::rejected(self.stream, self.sequence);
        Message { subject, headers, payload }
    }
}

impl Broker {
    /// Sets messages aside and logs why. A message that cannot be stored is only logged: it must not
    /// hold up the ones behind it.
    pub async fn set_aside(&self, rejected: &[Rejected]) {
        let Some(first) = rejected.first() else { return };
        tracing::error!(
            stream = first.stream,
            sequence = first.sequence,
            subject = first.subject,
            reason = first.reason,
            messages = rejected.len(),
            "messages cannot be processed and are set aside in stream {}",
            names::REJECTED
        );
        let messages: Vec<Message> = rejected.iter().map(Rejected::message).collect();
        let store = |message| {
            let broker = self.clone();
            async move { broker.publish(message).await }
        };
        let mut stored = stream::iter(messages).map(store).buffer_unordered(STORES_MAX);
        while let Some(stored) = stored.next().await {
            if let Err(error) = stored {
                tracing::error!(%error, "a rejected message could not be set aside");
            }
        }
    }

    /// How many messages are set aside; `None` if that could not be read.
    pub async fn rejected_count(&self) -> Option<u64> {
        let stream = self.js.get_stream(names::REJECTED).await.ok()?;
        Some(stream.cached_info().state.messages)
    }
}
