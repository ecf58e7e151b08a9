//! Results that are too large to be kept with their job: objects of the NATS object store `results`.
//!
//! A processor stores a result before it records the outcome that refers to it, so that a recorded
//! result can always be read. Each message carries a TTL, the retention of the job: nobody has to
//! delete anything. The messages have the form that every client of the object store reads (ADR-20 of
//! nats-architecture-and-design), written here because the client library sets no TTL.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    header::{NATS_MESSAGE_TTL, NATS_ROLLUP},
    jetstream::object_store::{GetErrorKind, Object, ObjectInfo, ObjectOptions},
};
use base64::{Engine, prelude::BASE64_URL_SAFE};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use job::{JobId, Run};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    Broker, names,
    publish::{self, Message},
};

/// Bytes of one message.
const CHUNK_BYTES: usize = 128 * 1024;
/// Messages that are stored at the same time.
const STORES_MAX: usize = 8;
/// How much longer than the description of an object its bytes are kept.
const CHUNK_TTL_MARGIN: Duration = Duration::from_secs(60);

/// A result could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker did not take it.
    #[error("the result could not be stored")]
    Store(#[from] publish::Error),
    /// The broker did not hand it out.
    #[error("the result could not be read: {0}")]
    Read(String),
}

impl Broker {
    /// Stores the result of a run for at least `ttl`. Storing it again replaces it.
    ///
    /// # Errors
    /// If the broker did not take it: nothing refers to what was stored of it, and it expires.
    pub async fn put_result(
        &self,
        job: JobId,
        run: Run,
        result: Bytes,
        ttl: Duration,
    ) -> Result<(), Error> {
        let nuid = Uuid::now_v7().simple().to_string();
        let chunks: Vec<Bytes> = (0..result.len())
            .step_by(CHUNK_BYTES)
            .map(|start| result.slice(start..result.len().min(start + CHUNK_BYTES)))
            .collect();
        let info = ObjectInfo {
            name: names::result(job, run),
            description: None,
            metadata: Default::default(),
            headers: None,
            options: Some(ObjectOptions { link: None, max_chunk_size: Some(CHUNK_BYTES) }),
            bucket: names::RESULTS.to_owned(),
            nuid: nuid.clone(),
            size: result.len(),
            chunks: chunks.len(),
            modified: None,
            digest: Some(format!("SHA-256={}", BASE64_URL_SAFE.encode(Sha256::digest(&result)))),
            deleted: false,
        };
        let store = |payload| {
            let (broker, subject) = (self.clone(), names::result_chunks(&nuid));
            let headers = with_ttl(ttl + CHUNK_TTL_MARGIN);
            async move { broker.publish(Message { subject, headers, payload }).await }
        };
        // In order: readers take the messages as they come.
        let mut stored = stream::iter(chunks).map(store).buffered(STORES_MAX);
        while let Some(stored) = stored.next().await {
            stored?;
        }
        let mut headers = with_ttl(ttl);
        headers.insert(NATS_ROLLUP, "sub");
        let payload = serde_json::to_vec(&info).expect("texts and numbers are JSON").into();
        let subject = names::result_info(&BASE64_URL_SAFE.encode(&info.name));
        self.publish(Message { subject, headers, payload }).await?;
        Ok(())
    }

    /// The stored result of a run, to be read as it arrives; `None` if there is none, or it has expired.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn get_result(&self, job: JobId, run: Run) -> Result<Option<Object>, Error> {
        let read = |error: &dyn std::error::Error| Error::Read(error.to_string());
        let store = self.js.get_object_store(names::RESULTS).await.map_err(|error| read(&error))?;
        match store.get(names::result(job, run)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == GetErrorKind::NotFound => Ok(None),
            Err(error) => Err(read(&error)),
        }
    }
}

fn with_ttl(ttl: Duration) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)));
    headers
}
