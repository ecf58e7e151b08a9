//! Reading the last messages of many subjects with one request (source: NATS ADR-31, batched requests).

use std::{collections::HashMap, time::Duration};

use async_nats::{
    Message,
    header::{NATS_SEQUENCE, NATS_SUBJECT},
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;

use crate::Broker;

/// The most subjects of one request: the broker refuses more than 1,024.
pub(crate) const SUBJECTS_MAX: usize = 1_000;
/// How long the next message of an answer may take.
const NEXT_WITHIN: Duration = Duration::from_secs(5);
/// The status of the message behind the last one.
const END: u16 = 204;
/// The status and description if no subject has a message. With another description a message could not be read.
const NOT_FOUND: u16 = 404;
const NO_RESULTS: &str = "No Results";
/// How many messages the answer leaves out, because it would be too large.
const PENDING: &str = "Nats-Num-Pending";

#[derive(Serialize)]
struct Request<'a> {
    multi_last: &'a [String],
    max_bytes: usize,
}

/// The last message of a subject.
#[derive(Clone, Debug)]
pub(crate) struct LastMessage {
    /// Its place in the stream.
    pub sequence: u64,
    /// Its body.
    pub payload: Bytes,
}

/// The last messages of subjects.
#[derive(Debug, Default)]
pub(crate) struct LastMessages {
    /// By subject. Subjects without a message are left out.
    pub found: HashMap<String, LastMessage>,
    /// False if more messages were left out, because there are too many bytes.
    pub is_complete: bool,
}

impl Broker {
    /// The last message of each of at most [`SUBJECTS_MAX`] subjects of a stream, until they have `bytes_max` bytes.
    ///
    /// Any replica of the stream answers, perhaps without the latest messages.
    ///
    /// # Errors
    /// If the answer is an error, or does not arrive.
    pub(crate) async fn last_messages(
        &self,
        stream: &str,
        subjects: &[String],
        bytes_max: usize,
    ) -> Result<LastMessages, String> {
        let read = || self.last_messages_once(stream, subjects, bytes_max);
        self.reread(read).await?.read()
    }

    async fn last_messages_once(
        &self,
        stream: &str,
        subjects: &[String],
        bytes_max: usize,
    ) -> Result<Answer, String> {
        let request = Request { multi_last: subjects, max_bytes: bytes_max };
        let request = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let inbox = self.client.new_inbox();
        let mut answers =
            self.client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let published = self.client.publish_with_reply(subject, inbox, request.into()).await;
        published.map_err(|error| error.to_string())?;
        let mut messages = Vec::with_capacity(subjects.len());
        loop {
            let next = tokio::time::timeout(NEXT_WITHIN, answers.next()).await;
            let message = next.map_err(|_| "the broker does not answer".to_owned())?;
            let message = message.ok_or_else(|| "the connection was closed".to_owned())?;
            match message.status.map(|status| status.as_u16()) {
                None => messages.push(message),
                Some(END) => return Ok(Answer { messages, end: Some(message) }),
                Some(NOT_FOUND) if message.description.as_deref() == Some(NO_RESULTS) => {
                    return Ok(Answer { messages, end: None });
                }
                Some(status) => {
                    let description = message.description.unwrap_or_default();
                    return Err(format!("the broker answers {status} {description}"));
                }
            }
        }
    }
}

/// The messages of one answer, and the one that ends it.
struct Answer {
    messages: Vec<Message>,
    end: Option<Message>,
}

impl Answer {
    fn read(self) -> Result<LastMessages, String> {
        let mut found = HashMap::with_capacity(self.messages.len());
        for message in self.messages {
            let header = |name| message.headers.as_ref()?.get(name).map(|value| value.as_str());
            let subject = header(NATS_SUBJECT.as_ref()).ok_or("a message has no subject")?;
            let subject = subject.to_owned();
            let sequence = header(NATS_SEQUENCE.as_ref());
            let sequence = sequence.and_then(|sequence| sequence.parse().ok());
            let sequence = sequence.ok_or("a message has no sequence")?;
            found.insert(subject, LastMessage { sequence, payload: message.payload });
        }
        let pending = self.end.as_ref().and_then(|end| end.headers.as_ref()?.get(PENDING));
        let is_complete = pending.is_none_or(|pending| pending.as_str() == "0");
        if found.is_empty() && !is_complete {
            return Err("the broker answers with no message and says that there are some".into());
        }
        Ok(LastMessages { found, is_complete })
    }
}
