//! A lease: the right to try to lead. It only saves the losers work; the fences make two leaders
//! harmless.
//!
//! The holder renews it by replacing the key. The others judge by their own clock how long the
//! key has not changed, so that no two clocks are ever compared.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{Entry, Operation, Store};
use serde::{Deserialize, Serialize};

use crate::{Broker, names};

/// How often the holder renews.
pub const RENEW_EVERY: Duration = Duration::from_millis(400);
/// How long a key may stay unchanged before another takes it.
pub const EXPIRES_AFTER: Duration = Duration::from_millis(1_600);

/// The lease could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("lease {key} could not be {step}: {why}")]
pub struct Error {
    key: &'static str,
    step: &'static str,
    why: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    holder: String,
    epoch: u64,
    released: bool,
}

/// One that tries for a lease, holds it, or watches another hold it.
#[derive(Debug)]
pub struct Lease {
    broker: Broker,
    store: Store,
    key: &'static str,
    holder: String,
    seen: Option<(u64, Instant)>,
    held: Option<(u64, u64)>,
}

impl Lease {
    /// A contender named `holder` for the lease `key`.
    ///
    /// # Errors
    /// If the bucket of leases cannot be opened.
    pub async fn open(broker: &Broker, key: &'static str, holder: &str) -> Result<Self, Error> {
        let store = broker.js.get_key_value(names::LEASES).await;
        let store = store.map_err(|error| Error { key, step: "opened", why: error.to_string() })?;
        let (broker, holder) = (broker.clone(), holder.to_owned());
        Ok(Self { broker, store, key, holder, seen: None, held: None })
    }

    /// Tries for the lease, or renews it; returns whether it is held now.
    ///
    /// # Errors
    /// If the broker did not answer: until the lease expires, it is unknown who holds it.
    pub async fn hold(&mut self) -> Result<bool, Error> {
        if let Some((revision, epoch)) = self.held {
            self.held = self.replace(revision, epoch, false).await?.map(|now| (now, epoch));
            return Ok(self.held.is_some());
        }
        let entry = self.entry().await?;
        let (revision, epoch, free) = match entry {
            None => (0, 0, true),
            Some(entry) => {
                let held: Option<Held> = serde_json::from_slice(&entry.value).ok();
                let free = entry.operation != Operation::Put
                    || held.as_ref().is_none_or(|held| held.released);
                (entry.revision, held.map_or(0, |held| held.epoch), free)
            }
        };
        let now = Instant::now();
        let since = match self.seen {
            Some((seen, since)) if seen == revision => since,
            _ => {
                self.seen = Some((revision, now));
                now
            }
        };
        if !free && now.duration_since(since) < EXPIRES_AFTER {
            return Ok(false);
        }
        self.held = self.replace(revision, epoch + 1, false).await?.map(|now| (now, epoch + 1));
        Ok(self.held.is_some())
    }

    /// Renews the lease, and returns how far the broker's clock is ahead of `now_ms`, in ms:
    /// negative if it is behind, 0 if the difference is within the duration of the request. `None`
    /// if the lease is not held.
    ///
    /// # Errors
    /// As of [`hold`](Self::hold).
    pub async fn clock_skew_ms(&mut self, now_ms: impl Fn() -> i64) -> Result<Option<i64>, Error> {
        let key = self.key;
        let failed = |why: String| Error { key, step: "read", why };
        let before = now_ms();
        if !self.hold().await? {
            return Ok(None);
        }
        let after = now_ms();
        let Some(entry) = self.entry().await? else { return Ok(None) };
        let stored = i64::try_from(entry.created.unix_timestamp_nanos() / 1_000_000);
        let stored = stored.map_err(|error| failed(error.to_string()))?;
        // The broker's time is cut to the ms.
        Ok(Some((stored - after).max(0) + (stored - before + 1).min(0)))
    }

    /// Gives the lease up, so that another may take it at once.
    pub async fn release(&mut self) {
        if let Some((revision, epoch)) = self.held.take()
            && self.broker.is_connected()
        {
            // What is not released expires.
            let release = self.replace(revision, epoch, true);
            let _ = tokio::time::timeout(EXPIRES_AFTER, release).await;
        }
    }

    async fn entry(&self) -> Result<Option<Entry>, Error> {
        let entry = self.broker.reread(|| self.store.entry(self.key)).await;
        entry.map_err(|error| Error { key: self.key, step: "read", why: error.to_string() })
    }

    /// The owner of the key after a refused replacement: possibly this one, if only the ack was
    /// lost.
    async fn look(&self, epoch: u64) -> Result<Option<u64>, Error> {
        let Some(entry) = self.entry().await? else { return Ok(None) };
        let held: Option<Held> = serde_json::from_slice(&entry.value).ok();
        let own = held.is_some_and(|held| held.holder == self.holder && held.epoch == epoch);
        Ok(own.then_some(entry.revision))
    }

    /// Replaces the key if it is still at `revision`; returns the new revision.
    async fn replace(
        &self,
        revision: u64,
        epoch: u64,
        released: bool,
    ) -> Result<Option<u64>, Error> {
        let held = Held { holder: self.holder.clone(), epoch, released };
        let value = serde_json::to_vec(&held).expect("a name and two flags are JSON");
        let lost = self.broker.answer_lost();
        let updated = tokio::select! {
            updated = self.store.update(self.key, value.into(), revision) => updated,
            () = lost => {
                let why = "the answer was lost with the connection".to_owned();
                return Err(Error { key: self.key, step: "written", why });
            }
        };
        match updated {
            Ok(revision) => Ok(Some(revision)),
            Err(error) => {
                use async_nats::jetstream::kv::UpdateErrorKind;
                match error.kind() {
                    UpdateErrorKind::WrongLastRevision => self.look(epoch).await,
                    kind => {
                        if kind == UpdateErrorKind::TimedOut {
                            let subject = format!("$KV.{}.{}", names::LEASES, self.key);
                            self.broker.report_unstored(&subject).await;
                        }
                        Err(Error { key: self.key, step: "written", why: error.to_string() })
                    }
                }
            }
        }
    }
}
