//! Ids: what users may call their projects and batches, and how jobs get theirs.

use axum::http::HeaderMap;
use job::{Digest, Id, Idempotency, JobId, bounds, in_shard};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::Error;

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;
/// The header that makes a repeat harmless.
const KEY_HEADER: &str = "idempotency-key";

/// A project's or batch's id: 1 to 128 bytes of printable UTF-8.
pub(crate) fn id(field: &str, value: &str) -> Result<Id, Error> {
    bounds::id(field, value).map_err(Error::invalid)?;
    Ok(value.into())
}

/// A job's id.
pub(crate) fn job_id(field: &str, value: &str) -> Result<JobId, Error> {
    uuid(field, value, "a job")
}

/// The ids of a list of jobs, or of what else `of` names. An empty list must not be read as "all".
pub(crate) fn uuids(
    field: &str,
    listed: &[String],
    max: usize,
    of: &str,
) -> Result<Vec<Uuid>, Error> {
    if listed.is_empty() || listed.len() > max {
        return Err(Error::invalid(format!("{field} must have 1 to {max} items")));
    }
    let ids = listed.iter().enumerate();
    ids.map(|(index, id)| uuid(&format!("{field}[{index}]"), id, of)).collect()
}

/// The UUID of what `of` names.
pub(crate) fn uuid(field: &str, value: &str, of: &str) -> Result<Uuid, Error> {
    let malformed = || Error::invalid(format!("{field} must be the UUID of {of}"));
    // Other spellings of a UUID (braces, no dashes) are not what the API gave out.
    if value.len() != 36 {
        return Err(malformed());
    }
    value.parse().map_err(|_| malformed())
}

/// The idempotency of a request: what makes a repeat of it known.
pub(crate) struct Key {
    scope: Sha256,
    /// Its hashes.
    pub idempotency: Idempotency,
}

impl Key {
    /// The key in the headers of a request to `endpoint`, if there is one.
    pub fn read(
        headers: &HeaderMap,
        endpoint: &str,
        project: &str,
        body: &[u8],
    ) -> Result<Option<Self>, Error> {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Error::invalid("Idempotency-Key is given twice"));
        }
        let printable = |b: &u8| (0x20..0x7f).contains(b);
        let key = value.as_bytes();
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.iter().all(printable) {
            let text =
                format!("Idempotency-Key must be 1 to {KEY_BYTES_MAX} printable ASCII characters");
            return Err(Error::invalid(text));
        }
        let mut scope = Sha256::new();
        for part in [project.as_bytes(), endpoint.as_bytes(), key] {
            scope.update((part.len() as u64).to_be_bytes());
            scope.update(part);
        }
        let idempotency = Idempotency {
            key: digest(scope.clone()),
            request: digest(Sha256::new_with_prefix(body)),
        };
        Ok(Some(Self { scope, idempotency }))
    }

    /// The id of this request's job for a batch: the same for every repeat.
    fn job(&self, batch: &str) -> JobId {
        let mut hash = self.scope.clone();
        hash.update(batch.as_bytes());
        Uuid::new_v8(digest(hash).0)
    }
}

/// The id of a new job: derived from the key if there is one, else random. Its last byte is its shard.
pub(crate) fn new_job(key: Option<&Key>, batch: &str) -> JobId {
    in_shard(key.map_or_else(Uuid::now_v7, |key| key.job(batch)))
}

fn digest(hash: Sha256) -> Digest {
    let hash = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Digest(bytes)
}
