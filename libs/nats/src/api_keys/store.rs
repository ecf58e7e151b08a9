//! The bucket of keys.

use std::fmt;

use async_nats::jetstream::kv::{self, Operation, Store};
use futures_util::{StreamExt, stream};
use job::time::Millis;
use serde::Serialize;

use super::{
    Change, Error, KeyRecord, NewKey,
    text::{ID_CHARS, is_id, new_text},
};
use crate::{Broker, access::Secret, names};

/// The prefix of the bucket's keys that hold records; the others hold when a key was last used.
const RECORD: &str = "key.";
const LAST_USED: &str = "used.";
/// The bucket's key that marks that each request needs an API key.
const ENFORCED: &str = "enforced";
/// Records that are read at the same time.
const READS_MAX: usize = 64;

fn failed(step: &'static str, error: &dyn fmt::Display) -> Error {
    Error::Nats { step, why: error.to_string() }
}

/// The keys of a mesh.
#[derive(Clone, Debug)]
pub struct KeyStore {
    store: Store,
}

impl KeyStore {
    /// The keys of the mesh behind `broker`.
    ///
    /// # Errors
    /// If their bucket cannot be opened.
    pub async fn open(broker: &Broker) -> Result<Self, Error> {
        let store = broker.js.get_key_value(names::KEYS).await;
        Ok(Self { store: store.map_err(|error| failed("read", &error))? })
    }

    /// All keys, with the time in ms since 1970 at which each was last used.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn list(&self) -> Result<Vec<(KeyRecord, Option<Millis>)>, Error> {
        let used = self.records().await?.into_iter().map(|(record, _)| async move {
            let used = self.store.get(format!("{LAST_USED}{}", record.id)).await;
            let used = used.map_err(|error| failed("read", &error))?;
            Ok((record, used.and_then(|used| serde_json::from_slice(&used).ok())))
        });
        let used: Vec<_> = stream::iter(used).buffer_unordered(READS_MAX).collect().await;
        let mut found = used.into_iter().collect::<Result<Vec<(KeyRecord, _)>, Error>>()?;
        found.sort_by(|(a, _), (b, _)| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(found)
    }

    /// All keys with their revisions. One that cannot be read is left out, and logged.
    ///
    /// # Errors
    /// If one cannot be reached.
    pub async fn records(&self) -> Result<Vec<(KeyRecord, u64)>, Error> {
        let keys = self.store.keys().await.map_err(|error| failed("listed", &error))?;
        let keys: Vec<_> = keys.collect().await;
        let mut ids = Vec::new();
        for key in keys {
            let key = key.map_err(|error| failed("listed", &error))?;
            ids.extend(key.strip_prefix(RECORD).map(str::to_owned));
        }
        let reads = ids.into_iter().map(|id| async move { self.read(&id).await });
        let reads: Vec<_> = stream::iter(reads).buffer_unordered(READS_MAX).collect().await;
        let mut records = Vec::new();
        for read in reads {
            match read {
                Ok(read) => records.push(read),
                // It was revoked since.
                Err(Error::NotFound(_)) => {}
                Err(Error::Unreadable { id, source }) => log_unreadable(&id, &source),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// True once a key was made: from then on each request needs one.
    ///
    /// # Errors
    /// If that cannot be read.
    pub async fn is_enforced(&self) -> Result<bool, Error> {
        let marker = self.store.get(ENFORCED).await.map_err(|error| failed("read", &error))?;
        Ok(marker.is_some())
    }

    /// Makes a key; returns the change and the text that is shown once.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub async fn create(&self, new: NewKey, now: Millis) -> Result<(Change, Secret), Error> {
        let id = Secret::random(ID_CHARS)?.reveal().to_owned();
        let (text, secret) = new_text(&id)?;
        let record = KeyRecord {
            id,
            name: new.name,
            projects: new.projects,
            scope: new.scope,
            metadata_only: new.metadata_only,
            created_at: now,
            expires_at: new.expires_at,
            secrets: vec![secret],
        };
        // First: without it the key would not be needed.
        let marked = self.store.put(ENFORCED, json(&now)).await;
        marked.map_err(|error| failed("stored", &error))?;
        let stored = self.store.create(key_of(&record.id), json(&record)).await;
        let revision = stored.map_err(|error| failed("stored", &error))?;
        Ok((Change::Set(record, revision), text))
    }

    /// Revokes a key.
    ///
    /// # Errors
    /// If there is none, or it cannot be stored.
    pub async fn revoke(&self, id: &str) -> Result<(), Error> {
        match self.read(id).await {
            // One that cannot be read is revoked too.
            Ok(_) | Err(Error::Unreadable { .. }) => {}
            Err(error) => return Err(error),
        }
        let used = format!("{LAST_USED}{id}");
        self.store.purge(key_of(id)).await.map_err(|error| failed("revoked", &error))?;
        self.store.purge(used).await.map_err(|error| failed("revoked", &error))
    }

    /// Gives a key another secret; the one before is accepted until `old_until`. Returns the change
    /// and the new text, which is shown once.
    ///
    /// # Errors
    /// If there is no such key, or it cannot be stored.
    pub async fn rotate(&self, id: &str, old_until: Millis) -> Result<(Change, Secret), Error> {
        let (mut record, revision) = self.read(id).await?;
        let (text, secret) = new_text(id)?;
        record.secrets.truncate(1);
        for old in &mut record.secrets {
            old.until = Some(old.until.map_or(old_until, |until| until.min(old_until)));
        }
        record.secrets.insert(0, secret);
        let stored = self.store.update(key_of(id), json(&record), revision).await;
        let revision = stored.map_err(|error| match error.kind() {
            kv::UpdateErrorKind::WrongLastRevision => Error::Conflict(id.to_owned()),
            _ => failed("stored", &error),
        })?;
        Ok((Change::Set(record, revision), text))
    }

    /// Records that a key was used `at`.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub async fn record_use(&self, id: &str, at: Millis) -> Result<(), Error> {
        let stored = self.store.put(format!("{LAST_USED}{id}"), json(&at)).await;
        stored.map(|_| ()).map_err(|error| failed("stored", &error))
    }

    /// All keys as they are, then each change as it happens.
    ///
    /// # Errors
    /// If they cannot be watched. An error in the stream ends it: watch again.
    pub async fn watch(
        &self,
    ) -> Result<impl futures_util::Stream<Item = Result<Change, Error>> + Unpin + use<>, Error>
    {
        let changes = self.store.watch_with_history(format!("{RECORD}*")).await;
        let changes = changes.map_err(|error| failed("watched", &error))?;
        Ok(Box::pin(changes.filter_map(|entry| {
            let change = entry.map(change_of).map_err(|error| failed("watched", &error));
            std::future::ready(change.transpose())
        })))
    }

    async fn read(&self, id: &str) -> Result<(KeyRecord, u64), Error> {
        let not_found = || Error::NotFound(id.to_owned());
        if !is_id(id) {
            return Err(not_found());
        }
        let entry = self.store.entry(key_of(id)).await.map_err(|error| failed("read", &error))?;
        let entry = entry.filter(|entry| entry.operation == Operation::Put);
        let entry = entry.ok_or_else(not_found)?;
        let record = serde_json::from_slice(&entry.value);
        let unreadable = |source| Error::Unreadable { id: id.to_owned(), source };
        Ok((record.map_err(unreadable)?, entry.revision))
    }
}

fn change_of(entry: kv::Entry) -> Option<Change> {
    let id = entry.key.strip_prefix(RECORD)?.to_owned();
    if entry.operation != Operation::Put {
        return Some(Change::Revoked(id));
    }
    match serde_json::from_slice(&entry.value) {
        Ok(record) => Some(Change::Set(record, entry.revision)),
        Err(error) => {
            log_unreadable(&id, &error);
            Some(Change::Revoked(id))
        }
    }
}

fn log_unreadable(id: &str, error: &serde_json::Error) {
    tracing::error!(key.id = id, %error, "API key could not be read and is not accepted");
}

fn key_of(id: &str) -> String {
    format!("{RECORD}{id}")
}

fn json<T: Serialize>(value: &T) -> bytes::Bytes {
    serde_json::to_vec(value).expect("a record is JSON").into()
}
