//! API keys: who may use the HTTP API, for which projects, and for what.
//!
//! A key is a text like `jm_<id>_<secret><check>`: 12 characters that name it, 32 random ones, and
//! six that show a typing error without a look-up. Its record in the bucket `keys` has a hash of the
//! secret; the text itself is shown once and stored nowhere. The hash needs no salt or work factor: the
//! secret has 190 random bits.

mod text;

use std::fmt;

use async_nats::jetstream::kv::{self, Operation, Store};
use futures_util::StreamExt;
use job::{Id, time::Millis};
use serde::{Deserialize, Serialize};

use text::{ID_CHARS, is_id, new_text, random, sha256};

pub use text::KeyText;

use crate::{Broker, access::Secret, names};

/// The prefix of the bucket's keys that hold records; the others hold when a key was last used.
const RECORD: &str = "key.";
const LAST_USED: &str = "used.";

/// What a key may do; each scope includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = KeyScope))]
pub enum Scope {
    /// Read status, lists, counts and events.
    Read,
    /// Enqueue jobs and redos.
    Enqueue,
    /// Cancel and retry jobs, and change settings and schedules.
    Manage,
    /// Everything, API keys included.
    Admin,
}

impl Scope {
    /// All scopes, the smallest first.
    pub const ALL: [Self; 4] = [Self::Read, Self::Enqueue, Self::Manage, Self::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Enqueue => "enqueue",
            Self::Manage => "manage",
            Self::Admin => "admin",
        }
    }
}

/// The hash of a secret, and until when it is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretHash {
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// In ms since 1970; absent if the secret is accepted as long as the key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<Millis>,
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// The part of the key that names it.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// The projects that it may use; all if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub projects: Option<Vec<Id>>,
    /// What it may do.
    pub scope: Scope,
    /// True if it sees neither data nor results nor progress of jobs.
    #[serde(default)]
    pub metadata_only: bool,
    /// In ms since 1970.
    pub created_at: Millis,
    /// In ms since 1970; absent if it does not expire.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<Millis>,
    /// The accepted secrets, the newest first: two while a key is rotated.
    pub secrets: Vec<SecretHash>,
}

/// What a new key may do.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// A name for people.
    pub name: String,
    /// The projects that it may use; all if absent.
    pub projects: Option<Vec<Id>>,
    /// What it may do.
    pub scope: Scope,
    /// True if it sees neither data nor results nor progress of jobs.
    pub metadata_only: bool,
    /// In ms since 1970.
    pub expires_at: Option<Millis>,
}

impl KeyRecord {
    /// True if `key` is this key, and is accepted at `now`. The time it takes does not depend on the
    /// secret.
    pub fn accepts(&self, key: &KeyText<'_>, now: Millis) -> bool {
        let given = sha256(key.secret);
        let mut is_accepted = false;
        for secret in &self.secrets {
            let pairs = secret.sha256.bytes().zip(given.bytes());
            let differences = pairs.fold(0, |sum, (a, b)| sum | (a ^ b));
            let is_equal = differences == 0 && secret.sha256.len() == given.len();
            is_accepted |= is_equal && secret.until.is_none_or(|until| now < until);
        }
        is_accepted && self.id == key.id && !self.is_expired(now)
    }

    /// True if it has expired at `now`.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// True if it may use a project.
    pub fn has_project(&self, project: &str) -> bool {
        self.projects.as_ref().is_none_or(|own| own.iter().any(|own| &**own == project))
    }
}

/// The keys could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NATS does not answer.
    #[error("API keys could not be {step}: {why}")]
    Nats {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        why: String,
    },
    /// There is no such key.
    #[error("there is no API key {0:?}")]
    NotFound(String),
    /// Another request changed the key at the same time.
    #[error("API key {0:?} was changed at the same time; try again")]
    Conflict(String),
    /// The system has no random bytes.
    #[error("no random bytes could be read")]
    Random(#[from] std::io::Error),
}

fn failed(step: &'static str, error: &dyn fmt::Display) -> Error {
    Error::Nats { step, why: error.to_string() }
}

/// A change of the keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A key is new or changed.
    Set(KeyRecord),
    /// A key is revoked: its id.
    Revoked(String),
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
        let keys = self.store.keys().await.map_err(|error| failed("listed", &error))?;
        let keys: Vec<_> = keys.collect().await;
        let mut found = Vec::new();
        for key in keys {
            let key = key.map_err(|error| failed("listed", &error))?;
            let Some(id) = key.strip_prefix(RECORD) else { continue };
            let Ok((record, _)) = self.read(id).await else { continue };
            let used = self.store.get(format!("{LAST_USED}{id}")).await;
            let used = used.map_err(|error| failed("read", &error))?;
            let used = used.and_then(|used| serde_json::from_slice(&used).ok());
            found.push((record, used));
        }
        found.sort_by(|(a, _), (b, _)| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(found)
    }

    /// Makes a key; returns its record and the text that is shown once.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub async fn create(&self, new: NewKey, now: Millis) -> Result<(KeyRecord, Secret), Error> {
        let id = random(ID_CHARS)?;
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
        let stored = self.store.create(key_of(&record.id), json(&record)).await;
        stored.map_err(|error| failed("stored", &error))?;
        Ok((record, text))
    }

    /// Revokes a key.
    ///
    /// # Errors
    /// If there is none, or it cannot be stored.
    pub async fn revoke(&self, id: &str) -> Result<KeyRecord, Error> {
        let (record, _) = self.read(id).await?;
        self.store.delete(key_of(id)).await.map_err(|error| failed("revoked", &error))?;
        Ok(record)
    }

    /// Gives a key another secret; the one before is accepted until `old_until`. Returns the record
    /// and the new text, which is shown once.
    ///
    /// # Errors
    /// If there is no such key, or it cannot be stored.
    pub async fn rotate(&self, id: &str, old_until: Millis) -> Result<(KeyRecord, Secret), Error> {
        let (mut record, revision) = self.read(id).await?;
        let (text, secret) = new_text(id)?;
        record.secrets.truncate(1);
        for old in &mut record.secrets {
            old.until = Some(old.until.map_or(old_until, |until| until.min(old_until)));
        }
        record.secrets.insert(0, secret);
        let stored = self.store.update(key_of(id), json(&record), revision).await;
        stored.map_err(|error| match error.kind() {
            kv::UpdateErrorKind::WrongLastRevision => Error::Conflict(id.to_owned()),
            _ => failed("stored", &error),
        })?;
        Ok((record, text))
    }

    /// Records that a key was used `at`.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub async fn note_used(&self, id: &str, at: Millis) -> Result<(), Error> {
        let noted = self.store.put(format!("{LAST_USED}{id}"), json(&at)).await;
        noted.map(|_| ()).map_err(|error| failed("stored", &error))
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
        Ok((record.map_err(|error| failed("read", &error))?, entry.revision))
    }
}

fn change_of(entry: kv::Entry) -> Option<Change> {
    let id = entry.key.strip_prefix(RECORD)?.to_owned();
    if entry.operation != Operation::Put {
        return Some(Change::Revoked(id));
    }
    match serde_json::from_slice(&entry.value) {
        Ok(record) => Some(Change::Set(record)),
        Err(error) => {
            tracing::error!(key.id = id, %error, "API key could not be read and is not accepted");
            Some(Change::Revoked(id))
        }
    }
}

fn key_of(id: &str) -> String {
    format!("{RECORD}{id}")
}

fn json<T: Serialize>(value: &T) -> bytes::Bytes {
    serde_json::to_vec(value).expect("a record is JSON").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(secret: SecretHash) -> KeyRecord {
        KeyRecord {
            id: "abcdefABCDEF".into(),
            name: "test".into(),
            projects: Some(vec!["p".into()]),
            scope: Scope::Read,
            metadata_only: false,
            created_at: 0,
            expires_at: Some(1_000),
            secrets: vec![secret],
        }
    }

    #[test]
    fn key_is_accepted_with_its_secret_until_it_expires() {
        let (text, secret) = new_text("abcdefABCDEF").expect("there are random bytes");
        let (other, _) = new_text("abcdefABCDEF").expect("there are random bytes");
        let (text, other) = (text.reveal().to_owned(), other.reveal().to_owned());
        let key = KeyText::parse(&text).expect("it is a key");
        let mut record = record(secret);
        assert!(record.accepts(&key, 999) && !record.accepts(&key, 1_000));
        assert!(!record.accepts(&KeyText::parse(&other).expect("it is a key"), 1));
        record.secrets[0].until = Some(10);
        assert!(record.accepts(&key, 9) && !record.accepts(&key, 10));
        assert!(record.has_project("p") && !record.has_project("q"));
        record.id = "abcdefABCDEX".into();
        assert!(!record.accepts(&key, 1));
    }
}
