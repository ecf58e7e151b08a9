//! The fenced append to EVENTS: the one place where a leader learns that it leads no more.

use async_nats::HeaderMap;
use bytes::Bytes;
use uuid::Uuid;

use crate::{
    Broker, names,
    publish::{self, Message, WRONG_LAST_SEQUENCE},
};

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The events are in the stream, as this message.
    At(u64),
    /// Somebody else wrote this message first: whoever asks leads no more.
    Lost,
}

/// An append whose fate could not be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker refused it, for another reason than its place.
    #[error("events could not be appended")]
    Publish(#[from] publish::Error),
    /// The end of EVENTS could not be read.
    #[error("the last message of EVENTS could not be read: {0}")]
    Read(String),
}

impl Broker {
    /// Appends `batch` (JSON of a [`Batch`](job::event::Batch)) behind message `last` of EVENTS. After an answer that leaves its fate
    /// open the last message is read: the append's own id in it says whose it is.
    ///
    /// # Errors
    /// Where neither the answer nor the stream says what became of it.
    pub async fn append(&self, last: u64, through: u64, batch: Bytes) -> Result<Appended, Error> {
        let id = Uuid::now_v7().simple().to_string();
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_EXPECTED_LAST_SEQUENCE, last.to_string());
        headers.insert(names::THROUGH, through.to_string());
        headers.insert(names::APPEND, id.as_str());
        let message = Message { subject: names::EVENT_SUBJECT.into(), headers, payload: batch };
        match self.publish(message).await {
            Ok(ack) => Ok(Appended::At(ack.sequence)),
            Err(error) if error.is(WRONG_LAST_SEQUENCE) || is_unknown(&error) => {
                match self.append_id(last + 1).await? {
                    Some(found) if found == id => Ok(Appended::At(last + 1)),
                    Some(_) => Ok(Appended::Lost),
                    // Not stored, and the broker may yet store it: only a new start is safe.
                    None => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whose append message `sequence` of EVENTS is; `None` where there is no such message.
    async fn append_id(&self, sequence: u64) -> Result<Option<String>, Error> {
        let stream = self.js.get_stream_no_info(names::EVENTS).await;
        let stream = stream.map_err(|error| Error::Read(error.to_string()))?;
        match self.reread(|| stream.get_raw_message(sequence)).await {
            Ok(message) => {
                let id = message.headers.get(names::APPEND).map(ToString::to_string);
                Ok(Some(id.unwrap_or_default()))
            }
            Err(error) => match error.kind() {
                async_nats::jetstream::stream::RawMessageErrorKind::NoMessageFound => Ok(None),
                _ => Err(Error::Read(error.to_string())),
            },
        }
    }
}

fn is_unknown(error: &publish::Error) -> bool {
    matches!(error, publish::Error::Unknown { .. })
}
