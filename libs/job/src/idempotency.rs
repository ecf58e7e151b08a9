//! Answers to requests with an idempotency key: a repeat gets the first answer again.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{JobId, reply::Reply, time::Millis};

/// A SHA-256 hash, cut to its first 16 bytes; written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).map_err(D::Error::custom)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// What a request with an `Idempotency-Key` is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The hash of project, endpoint and key.
    pub key: Digest,
    /// The hash of the request, to tell a repeat from another request under the same key.
    pub request: Digest,
}

/// The answer that was given under an idempotency key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// The hash of the request that it answered.
    pub request: Digest,
    /// The reply.
    pub reply: Reply,
    /// The first job of the request, if it created any.
    #[serde(default)]
    pub first_job: Option<JobId>,
    /// When it was given.
    pub at: Millis,
}
