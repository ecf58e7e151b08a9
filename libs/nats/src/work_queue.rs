//! Dispatch: ready runs into the streams of their classes, behind a fence.
//!
//! Every dispatch expects the fence message that this leader put into the stream; a replaced leader
//! cannot dispatch. The content of the streams is read from the streams, so a dispatch with an
//! unknown result can be repeated.

use std::collections::HashSet;

use async_nats::{
    HeaderMap, Subject,
    header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID, NATS_ROLLUP},
    jetstream::stream::{LastRawMessageErrorKind, PersistenceMode},
};
use futures_util::TryStreamExt;
use job::{Digest, Job, JobId, JobType, Json, PriorityClass, Run, Settings, trace::RunSpan};

use crate::{
    Broker, names,
    publish::{self, Ack, Message, Writes},
    wire::Work,
};

/// Names the subject whose last sequence is expected; the client library has no constant for it.
const EXPECTED_LAST_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Lets a message be refused where the last message of subject `of` is another one.
pub(crate) fn expect_fence(headers: &mut HeaderMap, fence: u64, of: &Subject) {
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, fence.to_string());
    headers.insert(EXPECTED_LAST_SUBJECT, of.as_str());
}

/// Why the streams of ready work could not be read or taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream could not be read.
    #[error("stream {stream} could not be read: {why}")]
    Read {
        /// The stream.
        stream: &'static str,
        /// The answer of the broker.
        why: String,
    },
    /// The fence could not be replaced.
    #[error("the fence of stream {stream} could not be replaced")]
    Fence {
        /// The stream.
        stream: &'static str,
        /// Why.
        #[source]
        source: publish::Error,
    },
}

/// The right to dispatch to the stream of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkFence {
    /// The sequence of the fence message, which dispatches must expect.
    pub sequence: u64,
    /// Whether the broker acks before it syncs, and takes no atomic batches.
    pub acks_before_sync: bool,
}

impl Broker {
    /// Replaces the fence of a class's stream, so that no earlier leader can dispatch.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn take_fence(&self, class: PriorityClass, term: u64) -> Result<WorkFence, Error> {
        let stream = names::work_stream(class);
        let subject = names::fence(class);
        let read = |why: String| Error::Read { stream, why };
        let handle = self.reread(|| self.js.get_stream(stream)).await;
        let handle = handle.map_err(|error| read(error.to_string()))?;
        let persist_mode = handle.cached_info().config.persist_mode;
        let last = self.reread(|| handle.get_last_raw_message_by_subject(&subject)).await;
        let old = match last {
            Ok(message) => message.sequence,
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => 0,
                _ => return Err(read(error.to_string())),
            },
        };
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, old.to_string());
        headers.insert(NATS_ROLLUP, "sub");
        let message = Message { subject, headers, payload: term.to_string().into() };
        let ack = self.publish(message).await.map_err(|source| Error::Fence { stream, source })?;
        let acks_before_sync = persist_mode == Some(PersistenceMode::Async);
        Ok(WorkFence { sequence: ack.sequence, acks_before_sync })
    }

    /// Publishes runs of one class to the class's stream: all or none if they are written as an
    /// atomic batch, which a stream that acks before it syncs does not take. Otherwise some can be
    /// missing, which shows in the sequence of the answer: only the leader writes there.
    ///
    /// # Errors
    /// See [`publish::Error`]: 10071 where another leader has the fence, 10077 where one of the
    /// runs is in the stream already, 10201 where one was there lately.
    pub async fn dispatch(
        &self,
        class: PriorityClass,
        fence: WorkFence,
        work: Vec<Message>,
        writes: Writes,
    ) -> Result<Ack, publish::Error> {
        let mut work = work;
        let writes = if fence.acks_before_sync { Writes::Pipelined } else { writes };
        let fenced = match writes {
            Writes::Atomic => work.len().min(1),
            Writes::Pipelined => work.len(),
        };
        for message in &mut work[..fenced] {
            expect_fence(&mut message.headers, fence.sequence, &names::fence(class));
        }
        let ack = match writes {
            Writes::Atomic => self.publish_batch(work).await?,
            Writes::Pipelined => self.publish_each(work).await?,
        };
        if ack.duplicate {
            return Err(publish::Error::Refused {
                subject: names::fence(class).to_string(),
                code: publish::DUPLICATE_ID,
                description: "the run was dispatched before".to_owned(),
            });
        }
        Ok(ack)
    }

    /// The runs that wait in the stream of a class or are with a processor.
    ///
    /// # Errors
    /// If the stream could not be read.
    pub async fn list_work(&self, class: PriorityClass) -> Result<HashSet<(JobId, Run)>, Error> {
        let stream = names::work_stream(class);
        let read = |why: String| Error::Read { stream, why };
        let handle = self.js.get_stream_no_info(stream).await;
        let handle = handle.map_err(|error| read(error.to_string()))?;
        let list = async || {
            let subjects = handle.info_with_subjects(names::work_subjects(class)).await;
            let subjects = subjects.map_err(|error| read(error.to_string()))?;
            subjects.try_collect::<Vec<_>>().await.map_err(|error| read(error.to_string()))
        };
        let listed = self.reread(list).await?;
        Ok(listed.iter().filter_map(|(subject, _)| names::work_run(subject)).collect())
    }

    /// The share of its size that a stream has used, from 0 to 1; `None` where it could not be
    /// read, or has no size.
    pub async fn fill(&self, stream: &str) -> Option<f64> {
        let (used, max) = self.room(stream).await?;
        Some(used as f64 / max as f64)
    }

    /// The bytes that a stream has used, and its size; `None` if it could not be read, or has no size.
    pub async fn room(&self, stream: &str) -> Option<(u64, u64)> {
        let stream = self.js.get_stream(stream).await.ok()?;
        let info = stream.cached_info();
        let max = u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0)?;
        Some((info.state.bytes, max))
    }

    /// The last sequence of a stream.
    ///
    /// # Errors
    /// If the stream could not be read.
    pub async fn last_sequence(&self, stream: &'static str) -> Result<u64, Error> {
        Ok(self.bounds(stream).await?.1)
    }

    /// The last message that a stream still has of some subjects; 0 if it has none.
    ///
    /// # Errors
    /// If the stream could not be read.
    pub async fn last_there(&self, stream: &'static str, subjects: &str) -> Result<u64, Error> {
        let read = |why: String| Error::Read { stream, why };
        let handle = self.js.get_stream_no_info(stream).await;
        let handle = handle.map_err(|error| read(error.to_string()))?;
        match self.reread(|| handle.get_last_raw_message_by_subject(subjects)).await {
            Ok(message) => Ok(message.sequence),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
            Err(error) => Err(read(error.to_string())),
        }
    }

    /// The first and the last sequence of a stream; the first of an empty stream is its next one.
    ///
    /// # Errors
    /// If the stream could not be read.
    pub async fn bounds(&self, stream: &'static str) -> Result<(u64, u64), Error> {
        let read = |why: String| Error::Read { stream, why };
        let handle = self.js.get_stream_no_info(stream).await;
        let handle = handle.map_err(|error| read(error.to_string()))?;
        let info = self.reread(|| handle.get_info()).await;
        let info = info.map_err(|error| read(error.to_string()))?;
        Ok((info.state.first_sequence, info.state.last_sequence))
    }
}

/// The message that hands out the current run of a job, to be run by the handler of this name
/// where the project names one; a delivery is given the project's webhook. `token` is what reports of the
/// run repeat. The message's id makes a repeat within the broker's window for duplicates harmless.
pub fn message(
    job: &Job,
    token: Digest,
    max_attempts: u32,
    retention_s: u32,
    settings: &Settings,
) -> Message {
    let (handler, options) = match job.job_type {
        JobType::Webhook => {
            let webhook = settings.webhook.as_ref().map(Json::of);
            (None, webhook.map(|json| json.expect("texts and numbers are JSON")))
        }
        JobType::ProcessBatch | JobType::ProcessRedo => {
            (settings.handler.clone(), settings.options.clone())
        }
    };
    let trace = job.history().trace;
    let traceparent = trace.map(|trace| trace.of_run(job.id, job.run, RunSpan::Execution));
    let work = Work {
        job: job.id,
        run: job.run,
        attempt: job.attempts + 1,
        max_attempts,
        project: job.project.clone(),
        batch: job.batch.clone(),
        job_type: job.job_type,
        priority: job.priority,
        queued_at: job.queued_at,
        handler,
        options,
        retention_s,
        traceparent,
        token: Some(token),
        data: job.data.clone(),
    };
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, format!("{}.{}", job.id, job.run));
    let subject = names::work(job.priority_class, job.job_type, job.id, job.run);
    let payload = serde_json::to_vec(&work).expect("ids, numbers and JSON are JSON");
    Message { subject, headers, payload: payload.into() }
}
