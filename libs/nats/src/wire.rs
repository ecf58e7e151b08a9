//! What messages hold. All of it is JSON, so that a processor in any language can take part.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SEQUENCE};
use job::{
    Digest, Id, JobId, JobType, Json, Run,
    command::{
        Cancel, Command, Enqueue, OperationCommand, Outcome, Progress, Project, Retry, SetSchedule,
        Started, Update,
    },
    event::Batch,
    reply::Reply,
    time::Millis,
    trace::TraceContext,
    version::{self, Newer},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::names::{self, Verb};

/// One thing asked, among those that a message carries; the message is an array of these.
#[derive(Debug, Serialize, Deserialize)]
pub struct Item<T> {
    /// Its own id, by which it is answered.
    pub id: Uuid,
    /// What is asked.
    pub command: T,
}

/// The reply to one [`Item`]; a message to the inbox is an array of these.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// The item's id.
    pub id: Uuid,
    /// The last message of EVENTS that it follows from.
    pub event: u64,
    /// The reply.
    pub reply: Reply,
}

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Its subject names no verb.
    #[error("no command has the subject {0}")]
    Verb(String),
    /// Its body is not what the verb carries.
    #[error("a command on {subject} could not be read: {source}")]
    Body {
        /// Its subject.
        subject: String,
        /// What was wrong.
        source: serde_json::Error,
    },
    /// It carries more items than any producer sends.
    #[error("a command on {subject} has {found} items, at most {ITEMS_MAX} are processed")]
    Items {
        /// Its subject.
        subject: String,
        /// How many it has.
        found: usize,
    },
    /// Only a newer program can read it.
    #[error("message {sequence} of {stream} cannot be read: {newer}")]
    Newer {
        /// The stream.
        stream: &'static str,
        /// Its sequence.
        sequence: u64,
        /// The version that it needs.
        newer: Newer,
    },
    /// A message of EVENTS was not appended by a state service.
    #[error("message {sequence} of EVENTS was not appended by a state service")]
    Foreign {
        /// Its sequence.
        sequence: u64,
    },
    /// A message of EVENTS cannot be read.
    #[error("message {sequence} of EVENTS cannot be read: {source}")]
    Events {
        /// Its sequence.
        sequence: u64,
        /// What was wrong.
        source: serde_json::Error,
    },
}

/// The most items of one message.
pub const ITEMS_MAX: usize = 10_000;

/// Whether this program can read message `sequence` of a stream.
///
/// # Errors
/// [`Malformed::Newer`] if it says that only a newer one can.
pub fn readable(
    stream: &'static str,
    sequence: u64,
    headers: Option<&HeaderMap>,
) -> Result<(), Malformed> {
    let header = headers.and_then(|headers| headers.get(names::REQUIRED_VERSION));
    let required = header.and_then(|header| header.as_str().parse().ok());
    version::check(required.unwrap_or(version::FIRST)).map_err(|newer| Malformed::Newer {
        stream,
        sequence,
        newer,
    })
}

/// The commands that message `sequence` of COMMANDS carries.
///
/// # Errors
/// If it needs a newer program, the subject names no verb, or the body does not fit the verb.
pub fn commands(
    sequence: u64,
    subject: &str,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<Vec<Item<Command>>, Malformed> {
    readable(names::COMMANDS, sequence, headers)?;
    let verb = Verb::of(subject).ok_or_else(|| Malformed::Verb(subject.to_owned()))?;
    let read = match verb {
        Verb::Enqueue | Verb::Redo => items::<Enqueue>(payload, Command::Enqueue),
        Verb::Cancel => items::<Cancel>(payload, Command::Cancel),
        Verb::Retry => items::<Retry>(payload, Command::Retry),
        Verb::Project => items::<Project>(payload, Command::Project),
        Verb::Update => items::<Update>(payload, Command::Update),
        Verb::Operation => items::<OperationCommand>(payload, Command::Operation),
        Verb::Schedule => items::<SetSchedule>(payload, Command::Schedule),
        Verb::Started => items::<Started>(payload, Command::Started),
        Verb::Progress => items::<Progress>(payload, Command::Progress),
        Verb::Outcome => items::<Outcome>(payload, Command::Outcome),
        #[cfg(feature = "next-version")]
        Verb::Note => items::<job::command::Note>(payload, Command::Note),
    };
    let items = read.map_err(|source| Malformed::Body { subject: subject.to_owned(), source })?;
    if items.len() > ITEMS_MAX {
        return Err(Malformed::Items { subject: subject.to_owned(), found: items.len() });
    }
    Ok(items)
}

fn items<T: for<'de> Deserialize<'de>>(
    payload: &[u8],
    command: fn(T) -> Command,
) -> Result<Vec<Item<Command>>, serde_json::Error> {
    let items: Vec<Item<T>> = serde_json::from_slice(payload)?;
    Ok(items.into_iter().map(|item| Item { id: item.id, command: command(item.command) }).collect())
}

/// Whether the message at `sequence` of EVENTS is an append of a state service. The broker stores an
/// append only behind the message that it expects, so that a copy of one is none.
pub fn is_append(sequence: u64, headers: Option<&HeaderMap>) -> bool {
    let Some(headers) = headers else { return false };
    let expected = headers.get(NATS_EXPECTED_LAST_SEQUENCE).and_then(|s| s.as_str().parse().ok());
    headers.get(names::APPEND).is_some() && expected == sequence.checked_sub(1)
}

/// The events of message `sequence` of EVENTS, and up to which command they reach.
///
/// # Errors
/// If it was not appended by a state service, or cannot be read: every reader skips such a message. But one that needs a newer
/// program must not be skipped ([`Malformed::Newer`]).
pub fn events(
    sequence: u64,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<(u64, Batch), Malformed> {
    if !is_append(sequence, headers) {
        return Err(Malformed::Foreign { sequence });
    }
    readable(names::EVENTS, sequence, headers)?;
    let through = headers.and_then(|headers| headers.get(names::THROUGH));
    let through = through.and_then(|through| through.as_str().parse().ok()).unwrap_or(0);
    Ok((through, batch(sequence, payload)?))
}

/// The events of a message of EVENTS that [is an append](is_append).
///
/// # Errors
/// If they cannot be read.
pub fn batch(sequence: u64, payload: &[u8]) -> Result<Batch, Malformed> {
    serde_json::from_slice(payload).map_err(|source| Malformed::Events { sequence, source })
}

/// What a processor is handed: one run of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: Run,
    /// The attempt that it begins, from 1.
    pub attempt: u32,
    /// The attempts the job may use.
    pub max_attempts: u32,
    /// The project.
    pub project: Id,
    /// The batch.
    pub batch: Id,
    /// What kind of work it is.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// 0 to 1000, lower first.
    pub priority: u16,
    /// When it became queued.
    pub queued_at: Millis,
    /// The handler that is to run it, by name; the processor's own choice where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub handler: Option<Id>,
    /// What the project says to that handler.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub options: Option<Json>,
    /// How long a result has to be kept, in seconds: the retention of the job when it was dispatched.
    #[serde(default)]
    pub retention_s: u32,
    /// The span that stands for this run, if its request is traced: the parent of spans that a handler makes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traceparent: Option<TraceContext>,
    /// What each report of this run repeats.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Digest>,
    /// What the handler is given.
    pub data: Json,
}

impl Work {
    /// The same without its token, for programs that report nothing themselves.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }
}

/// What the bucket holds beside jobs: how far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionWatermark {
    /// The last event that it shows.
    pub position: job::Position,
    /// The term of its writer.
    pub term: u64,
}

/// A notification to processors: these runs must stop.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stop {
    /// Jobs with the last run that is to stop.
    pub runs: Vec<(JobId, Run)>,
}
