//! How far EVENTS is in ClickHouse, and which block is being inserted.
//!
//! The range of a block is stored before the block is inserted. After a crash in between, the same
//! range is read again, gives the same rows, and is inserted under the same token, which ClickHouse
//! drops if it has it.

use async_nats::jetstream::kv::{Operation, Store};
use nats::{Broker, names};

pub(crate) use nats::checkpoint::Checkpoint;

/// The checkpoint, and the right to move it.
#[derive(Debug)]
pub(crate) struct CheckpointStore {
    broker: Broker,
    store: Store,
    revision: u64,
    checkpoint: Checkpoint,
}

impl CheckpointStore {
    /// Reads the checkpoint.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let store = broker.js.get_key_value(names::LEASES).await?;
        let entry = broker.reread(|| store.entry(names::METRICS_CHECKPOINT)).await?;
        let entry = entry.filter(|entry| entry.operation == Operation::Put);
        let (revision, checkpoint) = match entry {
            None => (0, Checkpoint { next: 1, pending: None, at: 0 }),
            Some(entry) => {
                // A foreign client wrote it: the last row in ClickHouse is the checkpoint.
                let checkpoint =
                    serde_json::from_slice(&entry.value).unwrap_or(Checkpoint::UNKNOWN);
                (entry.revision, checkpoint)
            }
        };
        Ok(Self { broker: broker.clone(), store, revision, checkpoint })
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Moves the place on.
    ///
    /// # Errors
    /// If another metrics service moved it, or the broker did not answer: the checkpoint must be
    /// read again.
    pub async fn put(&mut self, checkpoint: Checkpoint) -> anyhow::Result<()> {
        let value = serde_json::to_vec(&checkpoint)?;
        let lost = self.broker.answer_lost();
        self.revision = tokio::select! {
            updated = self.store.update(names::METRICS_CHECKPOINT, value.into(), self.revision) => updated?,
            () = lost => anyhow::bail!("the answer to a write of the checkpoint was lost"),
        };
        self.checkpoint = checkpoint;
        Ok(())
    }
}
