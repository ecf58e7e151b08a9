//! The bucket of jobs: read by anyone, written by the leading state service alone.
//!
//! A plain put of a stale leader would overwrite a newer value. So every write is an atomic
//! batch whose first message replaces `_through`, expecting its last revision: a stale batch is
//! refused as a whole. One batch at a time, because two in flight would refuse each other.
//!
//! If messages are pipelined instead, each key expects the current fence, and `_through` comes last
//! and expects all of them to be stored: it never claims more than the bucket has.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL},
    jetstream::stream::LastRawMessageErrorKind,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use job::{Digest, IdempotencyRecord, Job, JobId};
use serde::de::DeserializeOwned;

use crate::{
    Broker,
    last_messages::{LastMessages, SUBJECTS_MAX},
    names,
    publish::{
        self, ACK_TIMEOUT, Attempts, BATCH_MESSAGES_MAX, Message, REPEAT_FOR, REPEAT_PAUSE,
        SEQUENCE_IN_USE, WRONG_LAST_SEQUENCE, Writes,
    },
    wire::ProjectionWatermark,
    work_queue,
};

/// The most keys of one write: one message of the batch is the fence.
pub const WRITE_KEYS_MAX: usize = BATCH_MESSAGES_MAX - 1;

/// Keys that are read at the same time.
const READS_MAX: usize = 64;
/// The bytes of keys that are read with one request.
const READ_BYTES_MAX: usize = 8 << 20;

/// A key that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker did not answer, or with an error.
    #[error("key {key} of bucket jobs could not be read: {why}")]
    Read {
        /// The key.
        key: String,
        /// The answer of the broker.
        why: String,
    },
    /// Its value is not what belongs there.
    #[error("the value of key {key} in bucket jobs cannot be read")]
    Decode {
        /// The key.
        key: String,
        /// Its revision.
        revision: u64,
        /// What was wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// A value to be written.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// How long the key is kept; without a limit if absent.
    pub ttl: Option<Duration>,
}

/// The right to write the bucket: the revision of `_through` that the next write replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The revision of `_through`; 0 if it was never written.
    pub revision: u64,
    /// What it says.
    pub through: ProjectionWatermark,
    /// The last message of the bucket's stream, if known.
    pub last: Option<u64>,
}

fn fence_message(headers: HeaderMap, through: &ProjectionWatermark) -> Message {
    let payload = serde_json::to_vec(through).expect("a position and a number are JSON");
    let subject = names::key(names::JOBS, names::THROUGH_KEY);
    Message { subject, headers, payload: payload.into() }
}

fn key_message(write: &Write) -> Message {
    let mut headers = HeaderMap::new();
    if let Some(ttl) = write.ttl {
        headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)));
    }
    let subject = names::key(names::JOBS, &write.key);
    Message { subject, headers, payload: write.value.clone() }
}

impl Broker {
    /// A job, as the bucket has it; `None` if it has none that can be read. Read from the stream's
    /// leader.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_job(&self, id: JobId) -> Result<Option<Job>, Error> {
        readable(self.read_key(&id.to_string()).await)
    }

    /// Jobs, as [`read_job`](Self::read_job) reads each of them. If they are large, some of them are left out: at least
    /// one is read.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_jobs(&self, ids: &[JobId]) -> Result<Vec<(JobId, Option<Job>)>, Error> {
        // Only a server without replicas answers such a request with all that it has acked.
        if self.is_in_cluster() {
            return self.read_each_job(ids).await;
        }
        let mut jobs = Vec::with_capacity(ids.len());
        for ids in ids.chunks(SUBJECTS_MAX) {
            let keys: Vec<String> = ids.iter().map(JobId::to_string).collect();
            let subjects: Vec<String> =
                keys.iter().map(|key| names::key(names::JOBS, key).to_string()).collect();
            let read = self.last_messages(names::JOBS_STREAM, &subjects, READ_BYTES_MAX).await;
            let LastMessages { found, is_complete } = match read {
                Ok(read) => read,
                Err(error) => {
                    tracing::debug!(error, "keys are read one by one");
                    jobs.extend(self.read_each_job(ids).await?);
                    break;
                }
            };
            for ((id, key), subject) in ids.iter().zip(keys).zip(&subjects) {
                let message = found.get(subject);
                // It may be one that was left out.
                if message.is_none() && !is_complete {
                    continue;
                }
                let value = message.map(|it| decode(&key, it.sequence, &it.payload));
                jobs.push((*id, readable(value.transpose().map(Option::flatten))?));
            }
            if !is_complete {
                break;
            }
        }
        Ok(jobs)
    }

    /// The same with a request for each job.
    async fn read_each_job(&self, ids: &[JobId]) -> Result<Vec<(JobId, Option<Job>)>, Error> {
        let reads = ids.iter().copied().map(async |id| (id, self.read_job(id).await));
        let mut reads = stream::iter(reads).buffer_unordered(READS_MAX);
        let (mut jobs, mut bytes) = (Vec::with_capacity(ids.len()), 0);
        while bytes < READ_BYTES_MAX
            && let Some((id, job)) = reads.next().await
        {
            let job = job?;
            bytes += job.as_ref().map_or(0, Job::content_bytes);
            jobs.push((id, job));
        }
        Ok(jobs)
    }

    /// The answer under an idempotency key; `None` if there is none that can be read.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_answer(&self, key: Digest) -> Result<Option<IdempotencyRecord>, Error> {
        readable(self.read_key(&names::answer_key(key)).await)
    }

    /// The fence as it stands.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_fence(&self) -> Result<Fence, Error> {
        let (revision, through) = match self.read_key(names::THROUGH_KEY).await {
            Ok(read) => read.unwrap_or_default(),
            // It says nothing: everything that memory holds is written again.
            Err(Error::Decode { key, revision, source }) => {
                tracing::error!(key, %source, "a value that was not ours is replaced");
                (revision, ProjectionWatermark::default())
            }
            Err(error) => return Err(error),
        };
        Ok(Fence { revision, through, last: None })
    }

    /// Writes up to [`WRITE_KEYS_MAX`] keys and moves the fence on: all or nothing in an atomic
    /// batch, else the fence last.
    ///
    /// # Errors
    /// With code 10071 another leader moved the fence: this one was replaced.
    pub async fn write_bucket(
        &self,
        fence: Fence,
        through: ProjectionWatermark,
        writes: Vec<Write>,
        how: Writes,
    ) -> Result<Fence, publish::Error> {
        if let (Writes::Pipelined, Some(last)) = (how, fence.last) {
            match self.write_each(fence, last, through, &writes).await {
                // Another leader's fence, or a key that was refused: the fence decides which.
                Err(error @ publish::Error::Refused { .. }) => {
                    let now = self.read_fence().await;
                    if !now.is_ok_and(|now| now.revision == fence.revision) {
                        return Err(error);
                    }
                }
                end => return end,
            }
        }
        let below = writes.len() as u64;
        let mut messages = Vec::with_capacity(writes.len() + 1);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, fence.revision.to_string());
        messages.push(fence_message(headers, &through));
        messages.extend(writes.iter().map(key_message));
        self.write_batch(fence, through, messages, below).await
    }

    /// Writes in an atomic batch, and again while the broker does not say that it is stored or refused: of all attempts
    /// one is taken, because each expects the same fence.
    async fn write_batch(
        &self,
        fence: Fence,
        through: ProjectionWatermark,
        messages: Vec<Message>,
        below: u64,
    ) -> Result<Fence, publish::Error> {
        let mut attempts = Attempts::new();
        loop {
            let attempt = self.publish_batch_within(messages.clone(), attempts.next_patience());
            let error = match attempt.await {
                Ok(ack) => {
                    let (revision, last) = (ack.sequence - below, Some(ack.sequence));
                    return Ok(Fence { revision, through, last });
                }
                Err(error) => error,
            };
            let mut may_pass = error.may_pass();
            // An earlier attempt may have moved the fence.
            if error.is(WRONG_LAST_SEQUENCE) || error.is(SEQUENCE_IN_USE) {
                match self.read_fence().await {
                    Ok(now) if now.through == through && now.revision > fence.revision => {
                        return Ok(now);
                    }
                    Ok(_) => {}
                    // Not while there is no leader of the stream.
                    Err(unread) => {
                        tracing::warn!(error = %unread, "fence of the bucket not read, trying again");
                        may_pass = true;
                    }
                }
            }
            if !may_pass || attempts.elapsed() > REPEAT_FOR {
                return Err(error);
            }
            if error.is_unknown() && attempts.elapsed() > ACK_TIMEOUT {
                let subject = names::key(names::JOBS, names::THROUGH_KEY);
                self.report_unstored(&subject).await;
            }
            tokio::time::sleep(REPEAT_PAUSE).await;
        }
    }

    /// Writes keys one behind the other, then the fence, where all of them are stored.
    async fn write_each(
        &self,
        fence: Fence,
        last: u64,
        through: ProjectionWatermark,
        writes: &[Write],
    ) -> Result<Fence, publish::Error> {
        let subject = names::key(names::JOBS, names::THROUGH_KEY);
        let mut messages: Vec<Message> = writes.iter().map(key_message).collect();
        for message in &mut messages {
            work_queue::expect_fence(&mut message.headers, fence.revision, &subject);
        }
        // Another leader may have written as many: its fence tells.
        let mut headers = HeaderMap::new();
        let all = last + writes.len() as u64;
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, all.to_string());
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, fence.revision.to_string());
        messages.push(fence_message(headers, &through));
        let ack = self.publish_each(messages).await?;
        Ok(Fence { revision: ack.sequence, through, last: Some(ack.sequence) })
    }

    async fn read_key<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(u64, T)>, Error> {
        let read = |why: String| Error::Read { key: key.to_owned(), why };
        let stream = self.js.get_stream_no_info(names::JOBS_STREAM).await;
        let stream = stream.map_err(|error| read(error.to_string()))?;
        let subject = names::key(names::JOBS, key);
        let last = self.reread(|| stream.get_last_raw_message_by_subject(&subject)).await;
        let message = match last {
            Ok(message) => message,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => return Err(read(error.to_string())),
        };
        decode(key, message.sequence, &message.payload)
    }
}

/// The value of a key with its revision; `None` if the message says that the key was deleted.
fn decode<T: DeserializeOwned>(
    key: &str,
    revision: u64,
    payload: &[u8],
) -> Result<Option<(u64, T)>, Error> {
    // The broker's marker of an expired or deleted key has no body.
    if payload.is_empty() {
        return Ok(None);
    }
    let decoded = serde_json::from_slice(payload);
    let decoded = decoded.map_err(|source| Error::Decode { key: key.to_owned(), revision, source });
    Ok(Some((revision, decoded?)))
}

/// A value, or `None` if it cannot be read: a foreign client wrote it, and it will not become
/// readable.
fn readable<T>(read: Result<Option<(u64, T)>, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(Error::Decode { key, source, .. }) => {
            tracing::error!(key, %source, "a value of bucket jobs cannot be read and is ignored");
            Ok(None)
        }
        read => Ok(read?.map(|(_, value)| value)),
    }
}
