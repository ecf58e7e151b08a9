//! Snapshots of the state, two of them, each with its checksum.
//!
//! They hold what the streams hold no more, so no stream is ever cut below the older one.

use futures_util::TryStreamExt;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;

use crate::{Broker, names};

/// How many bytes the checksum takes at the front.
const CHECKSUM_BYTES: usize = 32;

/// A snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("snapshot could not be {step}: {why}")]
pub struct Error {
    step: &'static str,
    why: String,
}

/// How far a snapshot reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// The last message of EVENTS in it.
    pub events: u64,
    /// The last message of COMMANDS in it.
    pub commands: u64,
}

impl Reach {
    /// The name of the snapshot: names sort by age.
    fn name(self) -> String {
        format!("state-{:020}-{:020}", self.events, self.commands)
    }

    fn of(name: &str) -> Option<Self> {
        let (events, commands) = name.strip_prefix("state-")?.split_once('-')?;
        Some(Self { events: events.parse().ok()?, commands: commands.parse().ok()? })
    }
}

impl Broker {
    /// Writes a snapshot, and lets go of all but the two newest. `write` appends its bytes to
    /// what it is given.
    ///
    /// # Errors
    /// Where the object store did not take it.
    pub async fn put_snapshot(
        &self,
        reach: Reach,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), String> + Send + 'static,
    ) -> Result<(), Error> {
        let failed = |why: String| Error { step: "written", why };
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        // It may take seconds: away from the threads that serve the network.
        let content = tokio::task::spawn_blocking(move || {
            let mut content = vec![0; CHECKSUM_BYTES];
            write(&mut content)?;
            let (checksum, bytes) = content.split_at_mut(CHECKSUM_BYTES);
            checksum.copy_from_slice(&Sha256::digest(bytes));
            Ok::<_, String>(content)
        });
        let content = content.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
        let put = store.put(reach.name().as_str(), &mut content.as_slice()).await;
        put.map_err(|error| failed(error.to_string()))?;
        let mut names = self.snapshot_names().await?;
        names.truncate(names.len().saturating_sub(2));
        for old in names {
            let deleted = store.delete(&old).await;
            deleted.map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// The newest snapshot that is whole: its bytes. `None` where there is none.
    ///
    /// # Errors
    /// Where the object store cannot be read, or holds snapshots of which none is whole.
    pub async fn get_snapshot(&self) -> Result<Option<Vec<u8>>, Error> {
        let names = self.snapshot_names().await?;
        for name in names.iter().rev() {
            match self.read_snapshot(name).await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => tracing::error!(error = %error, name, "snapshot passed over"),
            }
        }
        if names.is_empty() {
            return Ok(None);
        }
        Err(Error { step: "read", why: format!("none of {} is whole", names.join(", ")) })
    }

    /// How far the snapshots reach that are kept, oldest first.
    ///
    /// # Errors
    /// Where the object store cannot be read.
    pub async fn snapshot_reaches(&self) -> Result<Vec<Reach>, Error> {
        let names = self.snapshot_names().await?;
        Ok(names.iter().filter_map(|name| Reach::of(name)).collect())
    }

    /// The names of the snapshots, oldest first.
    async fn snapshot_names(&self) -> Result<Vec<String>, Error> {
        let failed = |why: String| Error { step: "listed", why };
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        let list = store.list().await.map_err(|error| failed(error.to_string()))?;
        let listed: Result<Vec<_>, _> = list.try_collect().await;
        let listed = listed.map_err(|error| failed(error.to_string()))?;
        let live = listed.into_iter().filter(|object| !object.deleted);
        let mut names: Vec<String> = live.map(|object| object.name).collect();
        names.sort();
        Ok(names)
    }

    async fn read_snapshot(&self, name: &str) -> Result<Vec<u8>, Error> {
        let failed = |why: String| Error { step: "read", why };
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        let mut object = store.get(name).await.map_err(|error| failed(error.to_string()))?;
        let mut content = Vec::new();
        object.read_to_end(&mut content).await.map_err(|error| failed(error.to_string()))?;
        let Some((checksum, bytes)) = content.split_at_checked(CHECKSUM_BYTES) else {
            return Err(failed(format!("{name} is cut short")));
        };
        if Sha256::digest(bytes).as_slice() != checksum {
            return Err(failed(format!("{name} does not match its checksum")));
        }
        Ok(bytes.to_vec())
    }
}
