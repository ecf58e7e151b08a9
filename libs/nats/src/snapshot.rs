//! Snapshots of the state, two of them, compressed, and checked when they are read: the object
//! store keeps a digest of what it was given, and an end that was cut off is no end of a frame.
//!
//! They hold what the streams no longer hold, so no stream is trimmed below the older one. A
//! snapshot is as large as the state: it is written and read as a stream, never whole in memory.

use std::{
    error::Error as _,
    io::{self, BufRead, BufReader, Write},
};

use futures_util::TryStreamExt;
use job::version::Newer;
use lz4_flex::frame::{FrameDecoder, FrameEncoder};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::oneshot,
};
use tokio_util::io::SyncIoBridge;

use crate::{Broker, names};

/// Bytes on the way between the one who writes and the object store.
const PIPE_BYTES: usize = 256 * 1024;

/// A snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("snapshot could not be {step}: {why}")]
pub struct Error {
    step: &'static str,
    why: String,
    #[source]
    newer: Option<Newer>,
}

impl Error {
    fn new(step: &'static str, why: String) -> Self {
        Self { step, why, newer: None }
    }

    /// Whether only a newer program can read the snapshots.
    pub fn is_for_newer(&self) -> bool {
        self.newer.is_some()
    }
}

/// How far a snapshot reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotWatermark {
    /// The last message of EVENTS in it.
    pub events: u64,
    /// The last message of COMMANDS in it.
    pub commands: u64,
}

impl SnapshotWatermark {
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
    /// Writes a snapshot, and deletes all but the two newest. `write` runs on a thread of its own,
    /// which ends with it.
    ///
    /// # Errors
    /// If it could not be written, or the object store did not accept it.
    pub async fn put_snapshot(
        &self,
        reach: SnapshotWatermark,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let failed = |why: String| Error::new("written", why);
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        let (mut reader, writer) = tokio::io::duplex(PIPE_BYTES);
        let mut frame = FrameEncoder::new(SyncIoBridge::new(writer));
        let (done, writing) = oneshot::channel();
        // A dedicated thread, so that it can set its priority.
        let thread = std::thread::Builder::new().name("snapshot".to_owned());
        let spawned = thread.spawn(move || {
            let written = write(&mut frame).and_then(|()| {
                let mut pipe = frame.finish().map_err(io::Error::other)?;
                pipe.flush()?;
                pipe.shutdown()
            });
            // The receiver may have stopped waiting.
            let _ = done.send(written);
        });
        spawned.map_err(|error| failed(error.to_string()))?;
        let name = reach.name();
        let put = store.put(name.as_str(), &mut reader).await;
        // A store that gave up must not leave the writer waiting.
        drop(reader);
        // A thread that broke has written nothing whole either.
        let written = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        put.map_err(|error| failed(error.to_string()))?;
        if let Err(error) = written {
            // The object is truncated; readers skip it until it is deleted.
            let _ = store.delete(&name).await;
            return Err(failed(error.to_string()));
        }
        let mut names = self.snapshot_names().await?;
        names.truncate(names.len().saturating_sub(2));
        for old in names {
            let deleted = store.delete(&old).await;
            deleted.map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// The newest complete snapshot, as `read` reads it. `None` if there is none.
    ///
    /// # Errors
    /// If the object store cannot be read, or none of its snapshots is complete.
    pub async fn get_snapshot<T: Send + 'static>(
        &self,
        read: impl Fn(&mut dyn BufRead) -> io::Result<T> + Clone + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let names = self.snapshot_names().await?;
        let mut newer = None;
        for name in names.iter().rev() {
            match self.read_snapshot(name, read.clone()).await {
                Ok(read) => return Ok(Some(read)),
                Err(error) => {
                    tracing::error!(error = %error, name, "snapshot passed over");
                    newer = newer.or(error.newer);
                }
            }
        }
        if names.is_empty() {
            return Ok(None);
        }
        let why = match newer {
            Some(newer) => newer.to_string(),
            None => format!("none of {} is whole", names.join(", ")),
        };
        Err(Error { step: "read", why, newer })
    }

    /// Copies the newest snapshot, as it is stored. `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read as a whole: it may have been deleted meanwhile.
    pub async fn export_snapshot(
        &self,
        to: &mut (dyn Write + Send),
    ) -> Result<Option<SnapshotWatermark>, Error> {
        let failed = |why: String| Error::new("copied", why);
        let reaches = self.snapshot_reaches().await?;
        let Some(newest) = reaches.last() else { return Ok(None) };
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        let mut object =
            store.get(newest.name()).await.map_err(|error| failed(error.to_string()))?;
        let mut buffer = vec![0; PIPE_BYTES];
        loop {
            let read = object.read(&mut buffer).await.map_err(|error| failed(error.to_string()))?;
            if read == 0 {
                return Ok(Some(*newest));
            }
            to.write_all(&buffer[..read]).map_err(|error| failed(error.to_string()))?;
        }
    }

    /// Stores a snapshot that was copied.
    ///
    /// # Errors
    /// If the object store does not accept it.
    pub async fn import_snapshot(
        &self,
        reach: SnapshotWatermark,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), Error> {
        let failed = |why: String| Error::new("restored", why);
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        let put = store.put(reach.name().as_str(), from).await;
        put.map(|_| ()).map_err(|error| failed(error.to_string()))
    }

    /// How far the snapshots reach that are kept, oldest first.
    ///
    /// # Errors
    /// If the object store cannot be read.
    pub async fn snapshot_reaches(&self) -> Result<Vec<SnapshotWatermark>, Error> {
        let names = self.snapshot_names().await?;
        Ok(names.iter().filter_map(|name| SnapshotWatermark::of(name)).collect())
    }

    /// The names of the snapshots, oldest first.
    async fn snapshot_names(&self) -> Result<Vec<String>, Error> {
        let failed = |why: String| Error::new("listed", why);
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

    async fn read_snapshot<T: Send + 'static>(
        &self,
        name: &str,
        read: impl Fn(&mut dyn BufRead) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let failed = |why: String| Error::new("read", why);
        let store = self.js.get_object_store(names::SNAPSHOTS).await;
        let store = store.map_err(|error| failed(error.to_string()))?;
        let object = store.get(name).await.map_err(|error| failed(error.to_string()))?;
        let pipe = SyncIoBridge::new(object);
        let reading = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::with_capacity(PIPE_BYTES, FrameDecoder::new(pipe));
            let state = read(&mut lines).map_err(|error| unread(&error))?;
            // The digest is compared at the end.
            let behind = io::copy(&mut lines, &mut io::sink()).map_err(|error| unread(&error))?;
            if behind > 0 {
                return Err(Error::new("read", format!("{behind} bytes follow its end")));
            }
            Ok(state)
        });
        reading.await.map_err(|error| failed(error.to_string()))?
    }
}

/// An error of reading, with what caused it.
fn unread(error: &io::Error) -> Error {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let why = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    let newer = error.get_ref().and_then(|inner| inner.downcast_ref()).copied();
    Error { step: "read", why, newer }
}
