//! How far EVENTS is in ClickHouse, and which block is under way.
//!
//! The range of a block is written down before the block is inserted. A crash in between makes
//! the same range be read again, give the same rows, and be inserted under the same token, which
//! ClickHouse drops where it has it.

use async_nats::jetstream::kv::{Operation, Store};
use job::time::Millis;
use mesh::{Broker, names};
use serde::{Deserialize, Serialize};

/// What the bucket of leases holds under the name of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The first message of EVENTS that is not in ClickHouse for certain.
    pub next: u64,
    /// The last message of the block under way, which begins at `next`.
    pub pending: Option<u64>,
    /// When the last message before `next` was written, in ms since 1970.
    #[serde(default)]
    pub at: Millis,
}

impl Place {
    /// What stands for a value that cannot be read: no message has this sequence.
    pub const UNKNOWN: Self = Self { next: 0, pending: None, at: 0 };
}

/// The place, and the right to move it.
#[derive(Debug)]
pub(crate) struct Keeper {
    broker: Broker,
    store: Store,
    revision: u64,
    place: Place,
}

impl Keeper {
    /// Reads the place.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let store = broker.js.get_key_value(names::LEASES).await?;
        let entry = broker.reread(|| store.entry(names::METRICS_PLACE)).await?;
        let entry = entry.filter(|entry| entry.operation == Operation::Put);
        let (revision, place) = match entry {
            None => (0, Place { next: 1, pending: None, at: 0 }),
            Some(entry) => {
                // Somebody else wrote it: ClickHouse tells how far it is.
                let place = serde_json::from_slice(&entry.value).unwrap_or(Place::UNKNOWN);
                (entry.revision, place)
            }
        };
        Ok(Self { broker: broker.clone(), store, revision, place })
    }

    /// The place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Moves the place on.
    ///
    /// # Errors
    /// Where another metrics service moved it, or the broker did not answer: the place has to be
    /// read again.
    pub async fn put(&mut self, place: Place) -> anyhow::Result<()> {
        let value = serde_json::to_vec(&place)?;
        let lost = self.broker.answer_lost();
        self.revision = tokio::select! {
            updated = self.store.update(names::METRICS_PLACE, value.into(), self.revision) => updated?,
            () = lost => anyhow::bail!("the answer to a write of the checkpoint was lost"),
        };
        self.place = place;
        Ok(())
    }
}
