//! The fenced append to EVENTS, which is refused if another service leads. Writes of the bucket and dispatches
//! have fences of their own.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream::stream::RawMessageErrorKind};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use job::version;
use uuid::Uuid;

use crate::{
    Broker, names,
    publish::{
        self, ACK_TIMEOUT, Attempts, Message, REPEAT_FOR, REPEAT_PAUSE, SMALL_BYTES,
        WRONG_LAST_SEQUENCE,
    },
    rejected::Rejected,
    wire,
};

/// How long one attempt of a small append waits at most: a server that was cut off answers none, and the broker does not write a
/// repeat to the disk.
const APPEND_WITHIN: Duration = Duration::from_secs(1);
/// How long the end of EVENTS may take to be read, before the append is repeated.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// Messages of EVENTS that are read at the same time.
const READS_MAX: usize = 64;

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The events are in the stream, as this message.
    At(u64),
    /// Another state service appended first: this one is a stale leader.
    Stale,
}

/// The result of an append is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker refused it, and not because the stream has another end.
    #[error("events could not be appended")]
    Publish(#[from] publish::Error),
    /// The end of EVENTS could not be read.
    #[error("the last message of EVENTS could not be read: {0}")]
    Read(String),
}

impl Broker {
    /// Appends `batch` (JSON of a [`Batch`](job::event::Batch)) behind message `last` of EVENTS. A batch
    /// that may not be stored is appended again: of all attempts the stream takes one, because each expects the same last
    /// message. If the broker refuses one, the stream is read: each message has the id of its append. Messages in between that no state service appended are set aside, and the append
    /// goes behind them.
    ///
    /// # Errors
    /// If neither answers nor the stream say within 15 s what became of it.
    pub async fn append(&self, last: u64, through: u64, batch: Bytes) -> Result<Appended, Error> {
        self.append_for(version::FIRST, last, through, batch).await
    }

    /// Appends a batch that needs a version, see [`append`](Self::append).
    ///
    /// # Errors
    /// As of [`append`](Self::append).
    pub async fn append_for(
        &self,
        required_version: u32,
        last: u64,
        through: u64,
        batch: Bytes,
    ) -> Result<Appended, Error> {
        let id = Uuid::now_v7().simple().to_string();
        let mut last = last;
        let mut attempts =
            Attempts::within(if batch.len() <= SMALL_BYTES { APPEND_WITHIN } else { ACK_TIMEOUT });
        let mut may_be_stored = false;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(async_nats::header::NATS_EXPECTED_LAST_SEQUENCE, last.to_string());
            headers.insert(names::THROUGH, through.to_string());
            headers.insert(names::REQUIRED_VERSION, required_version.to_string());
            headers.insert(names::APPEND, id.as_str());
            let subject = names::EVENT_SUBJECT.into();
            let message = Message { subject, headers, payload: batch.clone() };
            let error = match self.publish_within(message, attempts.next_patience()).await {
                Ok(ack) => return Ok(Appended::At(ack.sequence)),
                Err(error) if error.is(WRONG_LAST_SEQUENCE) || error.may_pass() => error,
                Err(error) => return Err(error.into()),
            };
            if error.is_unknown() && attempts.elapsed() > ACK_TIMEOUT {
                self.report_unstored(names::EVENT_SUBJECT).await;
            }
            may_be_stored |= !matches!(error, publish::Error::NoStream { .. });
            let is_over = attempts.elapsed() > REPEAT_FOR;
            // If an earlier attempt was stored, the broker refuses the repeat: reading before costs time while the stream has
            // no leader.
            let must_read = error.is(WRONG_LAST_SEQUENCE) || (is_over && may_be_stored);
            let found = match must_read {
                true => self.what_follows(last, &id).await,
                false => Ok(Follows::Nothing),
            };
            let found = match found {
                Ok(Follows::Own(sequence)) => return Ok(Appended::At(sequence)),
                Ok(Follows::Append) => return Ok(Appended::Stale),
                Ok(Follows::Foreign(sequence)) => {
                    last = sequence;
                    continue;
                }
                Ok(Follows::Nothing) => Ok(()),
                Err(unread) => Err(unread),
            };
            if is_over {
                found?;
                return Err(error.into());
            }
            tokio::time::sleep(REPEAT_PAUSE).await;
        }
    }

    /// Looks through the messages behind `last` of EVENTS for an append.
    async fn what_follows(&self, last: u64, id: &str) -> Result<Follows, Error> {
        let read = |error: String| Error::Read(error);
        let stream = self.js.get_stream_no_info(names::EVENTS).await;
        let stream = stream.map_err(|error| read(error.to_string()))?;
        // A stream without a leader does not answer.
        let end = tokio::time::timeout(READ_WITHIN, self.last_sequence(names::EVENTS)).await;
        let end = end.map_err(|_| read("no answer in time".to_owned()))?;
        let end = end.map_err(|error| read(error.to_string()))?;
        let read_one = |sequence| {
            let (broker, stream) = (self.clone(), stream.clone());
            async move { (sequence, broker.reread(|| stream.get_raw_message(sequence)).await) }
        };
        let mut messages = stream::iter(last + 1..=end).map(read_one).buffered(READS_MAX);
        let mut foreign = Vec::new();
        let mut found = Follows::Nothing;
        while let Some((sequence, message)) = messages.next().await {
            let message = match message {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
                Err(error) => return Err(read(error.to_string())),
            };
            if wire::is_append(sequence, Some(&message.headers)) {
                let own = message.headers.get(names::APPEND).is_some_and(|it| it.as_str() == id);
                found = if own { Follows::Own(sequence) } else { Follows::Append };
                break;
            }
            found = Follows::Foreign(sequence);
            foreign.push(Rejected {
                stream: names::EVENTS,
                sequence,
                subject: message.subject.to_string(),
                reason: wire::Malformed::Foreign { sequence }.to_string(),
                payload: message.payload,
            });
        }
        self.set_aside(&foreign).await;
        Ok(found)
    }
}

/// What is behind the message that an append expected to be the last.
enum Follows {
    /// The append itself.
    Own(u64),
    /// An append of another state service.
    Append,
    /// Only messages that no state service appended, up to this one.
    Foreign(u64),
    /// Nothing.
    Nothing,
}
