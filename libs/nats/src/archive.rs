//! Copies of streams in the format of NATS's own backups: read while the stream is written, and restored with the same
//! sequences.
//!
//! A copy has the messages up to the last one at its start, without those that were deleted meanwhile: of a key-value
//! bucket, keys that were written meanwhile are missing.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use async_nats::{
    client::{Request, RequestErrorKind},
    jetstream::{ErrorCode, response::Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::Broker;

/// Bytes of one message of a copy.
const CHUNK_BYTES: usize = 128 * 1024;
/// How long the broker may take for the next message of a copy, or to confirm one.
const CHUNK_WITHIN: Duration = Duration::from_secs(30);
/// How long the broker may take to make the stream of a copy that it has received.
const RESTORE_WITHIN: Duration = Duration::from_secs(300);
/// How long a cluster may take to know the server that restores, and the pause between two attempts.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
const FOUND_PAUSE: Duration = Duration::from_millis(50);
/// The status of a complete copy.
const COMPLETE: u16 = 204;

/// A stream could not be copied or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker refused, or did not answer.
    #[error("stream {stream} could not be {step}: {why}")]
    Broker {
        /// The stream.
        stream: String,
        /// What failed.
        step: &'static str,
        /// The answer of the broker.
        why: String,
    },
    /// The copy could not be written or read.
    #[error("the copy of stream {stream} could not be {step}")]
    File {
        /// The stream.
        stream: String,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What belongs to a copy, beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamArchive {
    /// The configuration of the stream, as NATS writes it.
    pub config: Value,
    /// The state of the stream when the copy was started, as NATS writes it.
    pub state: Value,
}

impl StreamArchive {
    /// The sequences of the first and the last message.
    pub fn bounds(&self) -> (u64, u64) {
        let sequence = |name: &str| self.state[name].as_u64().unwrap_or(0);
        (sequence("first_seq"), sequence("last_seq"))
    }
}

#[derive(Deserialize)]
struct RestoreTo {
    deliver_subject: String,
}

impl Broker {
    /// Copies a stream, without its consumers.
    ///
    /// # Errors
    /// If the broker refuses, the connection is lost meanwhile, or `to` cannot be written.
    pub async fn export_stream(
        &self,
        stream: &str,
        to: &mut (dyn Write + Send),
    ) -> Result<StreamArchive, Error> {
        let failed = |why: String| Error::Broker { stream: stream.to_owned(), step: "copied", why };
        let mut connects = self.connects();
        connects.mark_unchanged();
        let inbox = self.client.new_inbox();
        let subscribed = self.client.subscribe(inbox.clone()).await;
        let mut chunks = subscribed.map_err(|error| failed(error.to_string()))?;
        let request =
            json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK_BYTES });
        let archive = self.api(format!("STREAM.SNAPSHOT.{stream}"), &request).await;
        let archive = archive.map_err(failed)?;
        loop {
            let chunk = tokio::time::timeout(CHUNK_WITHIN, chunks.next()).await;
            let chunk = chunk.ok().flatten().ok_or_else(|| failed("the broker stopped".into()))?;
            // Messages on a connection that was lost are not sent again.
            if connects.has_changed().unwrap_or(true) {
                return Err(failed("the connection was lost meanwhile".to_owned()));
            }
            if chunk.payload.is_empty() {
                let status = chunk.status.map_or(COMPLETE, |status| status.as_u16());
                let why = chunk.description.unwrap_or_default();
                return if status == COMPLETE { Ok(archive) } else { Err(failed(why)) };
            }
            let written = to.write_all(&chunk.payload);
            written.map_err(|source| Error::File {
                stream: stream.to_owned(),
                step: "written",
                source,
            })?;
            if let Some(confirm) = chunk.reply {
                let confirmed = self.client.publish(confirm, Bytes::new()).await;
                confirmed.map_err(|error| failed(error.to_string()))?;
            }
        }
    }

    /// Makes a stream of a copy, on at most as many servers as `replicas`.
    ///
    /// # Errors
    /// If the stream exists, the broker refuses, or `from` cannot be read.
    pub async fn import_stream(
        &self,
        stream: &str,
        archive: &StreamArchive,
        replicas: usize,
        from: &mut (dyn Read + Send),
    ) -> Result<(), Error> {
        let failed =
            |why: String| Error::Broker { stream: stream.to_owned(), step: "restored", why };
        let mut request = json!(archive);
        let had = request["config"]["num_replicas"].as_u64().unwrap_or(1);
        request["config"]["num_replicas"] = had.min(replicas as u64).into();
        let to: RestoreTo =
            self.api(format!("STREAM.RESTORE.{stream}"), &request).await.map_err(failed)?;
        let began = Instant::now();
        let mut is_first = true;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = from.take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            let read = read.map_err(|source| Error::File {
                stream: stream.to_owned(),
                step: "read",
                source,
            })?;
            // An empty message ends the copy, and the answer to it tells whether the stream was made.
            let within = if read == 0 { RESTORE_WITHIN } else { CHUNK_WITHIN };
            let chunk = Bytes::from(chunk);
            let answer = loop {
                let request = Request::new().payload(chunk.clone()).timeout(Some(within));
                match self.client.send_request(to.deliver_subject.clone(), request).await {
                    Ok(answer) => break answer,
                    // The server of the cluster that restores may not be known to this one yet.
                    Err(error)
                        if is_first
                            && error.kind() == RequestErrorKind::NoResponders
                            && began.elapsed() < FOUND_WITHIN =>
                    {
                        tokio::time::sleep(FOUND_PAUSE).await;
                    }
                    Err(error) => return Err(failed(error.to_string())),
                }
            };
            is_first = false;
            if !answer.payload.is_empty() {
                parse::<Value>(&answer.payload).map_err(failed)?;
            }
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// Those of `streams` that are there.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn existing<'a>(&self, streams: &'a [String]) -> Result<Vec<&'a str>, Error> {
        use async_nats::jetstream::context::GetStreamErrorKind::JetStream;
        let mut existing = Vec::new();
        for stream in streams {
            match self.js.get_stream(stream).await {
                Ok(_) => existing.push(stream.as_str()),
                Err(error) => match error.kind() {
                    JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
                    _ => {
                        let (stream, why) = (stream.to_owned(), error.to_string());
                        return Err(Error::Broker { stream, step: "read", why });
                    }
                },
            }
        }
        Ok(existing)
    }

    /// A request to JetStream that the client library has no function for.
    async fn api<T: DeserializeOwned>(
        &self,
        subject: String,
        request: &Value,
    ) -> Result<T, String> {
        let answer = self.js.request(subject, request).await;
        unwrap(answer.map_err(|error| error.to_string())?)
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    unwrap(serde_json::from_slice(payload).map_err(|error| error.to_string())?)
}

fn unwrap<T>(response: Response<T>) -> Result<T, String> {
    match response {
        Response::Ok(answer) => Ok(answer),
        Response::Err { error } => Err(error.to_string()),
    }
}
