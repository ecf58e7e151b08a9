//! API keys: each lets its client use the HTTP API, in some projects or all, within a scope.
//!
//! A key is a text like `jm_<id>_<secret><check>`: 12 characters that name it, 32 random ones, and
//! six that show a typing error without a look-up. Its record in the bucket `keys` has a hash of the
//! secret; the text itself is shown once and stored nowhere. The hash needs no salt or work factor: the
//! secret has 190 random bits.

mod store;
mod text;

use job::{Id, time::Millis};
use serde::{Deserialize, Serialize};

pub use store::KeyStore;
pub use text::KeyText;

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
    /// Until when a secret with this hash is accepted, in ms since 1970: `Some(None)` if without a limit,
    /// `None` if it is not accepted at `now`. The time it takes does not depend on the secret.
    pub fn accepted_until(&self, secret_hash: &str, now: Millis) -> Option<Option<Millis>> {
        let mut accepted = None;
        for secret in &self.secrets {
            let pairs = secret.sha256.bytes().zip(secret_hash.bytes());
            let differences = pairs.fold(0, |sum, (a, b)| sum | (a ^ b));
            if differences == 0 && secret.sha256.len() == secret_hash.len() {
                accepted = Some(secret.until);
            }
        }
        let until = [accepted?, self.expires_at].into_iter().flatten().min();
        until.is_none_or(|until| now < until).then_some(until)
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
    /// The record of a key could not be read: revoke the key.
    #[error("the record of API key {id:?} could not be read; revoke it")]
    Unreadable {
        /// The key.
        id: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
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

/// A change of the keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A key is new or changed: its record, and the revision, which grows with each change.
    Set(KeyRecord, u64),
    /// A key is revoked: its id.
    Revoked(String),
}

#[cfg(test)]
mod tests {
    use super::{text::new_text, *};

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
        let hash = key.secret_hash();
        assert_eq!(record.accepted_until(&hash, 999), Some(Some(1_000)));
        assert_eq!(record.accepted_until(&hash, 1_000), None);
        let other = KeyText::parse(&other).expect("it is a key").secret_hash();
        assert_eq!(record.accepted_until(&other, 1), None);
        record.secrets[0].until = Some(10);
        assert_eq!(record.accepted_until(&hash, 9), Some(Some(10)));
        assert_eq!(record.accepted_until(&hash, 10), None);
        (record.secrets[0].until, record.expires_at) = (None, None);
        assert_eq!(record.accepted_until(&hash, 10), Some(None));
        assert!(record.has_project("p") && !record.has_project("q"));
    }
}
