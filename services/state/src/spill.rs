//! The spill store: unnamed files with queued jobs that memory has no room for.
//!
//! A file is written to its end and never changed. It is deleted when the last job in it was
//! forgotten, or when the process ends. It need not survive the process: a start reads the snapshot
//! and EVENTS, and spills again.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use job::{SpillFile, SpillRef};

/// The size of a file. One straggler keeps it.
const FILE_BYTES_MAX: u32 = 32 << 20;
/// The most files in use, each of which holds a descriptor; further jobs stay in memory.
const FILES_MAX: usize = 700;
/// Bytes at the end of a file that are in memory.
const TAIL_BYTES_MAX: usize = 128 << 10;

/// Puts texts away below a folder.
#[derive(Debug)]
pub(crate) struct SpillStore {
    dir: PathBuf,
    filling: Mutex<Option<Filling>>,
    open: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Filling {
    file: Arc<Stored>,
    end: u32,
}

/// A file, and what of its end is still to be written: a write for each text would cost more than
/// all else.
#[derive(Debug)]
struct Stored {
    file: File,
    tail: Mutex<Tail>,
    /// How many files are in use.
    open: Arc<AtomicUsize>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Tail {
    at: u32,
    bytes: Vec<u8>,
}

impl Stored {
    /// Adds a text behind the last.
    fn add(&self, text: &str) -> io::Result<()> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.bytes.len() + text.len() > TAIL_BYTES_MAX && !tail.bytes.is_empty() {
            self.file.write_all_at(&tail.bytes, u64::from(tail.at))?;
            tail.at += u32::try_from(tail.bytes.len()).map_err(io::Error::other)?;
            tail.bytes.clear();
        }
        tail.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn bytes(&self, at: u32, bytes: u32) -> io::Result<Vec<u8>> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if at >= tail.at {
            let from = (at - tail.at) as usize;
            let text = tail.bytes.get(from..from + bytes as usize);
            return text.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        }
        drop(tail);
        let mut text = vec![0; bytes as usize];
        self.file.read_exact_at(&mut text, u64::from(at))?;
        Ok(text)
    }
}

impl SpillStore {
    /// Puts away below `dir`, which must be there.
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), filling: Mutex::default(), open: Arc::default() }
    }

    fn put(&self, text: &str) -> io::Result<SpillRef> {
        let bytes = u32::try_from(text.len()).map_err(io::Error::other)?;
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, at) = match &*filling {
            Some(Filling { file, end }) if bytes <= FILE_BYTES_MAX.saturating_sub(*end) => {
                (file.clone(), *end)
            }
            _ => {
                if self.open.load(Ordering::Relaxed) >= FILES_MAX {
                    return Err(io::Error::other(format!("{FILES_MAX} files are in use")));
                }
                let file = tempfile::tempfile_in(&self.dir)?;
                self.open.fetch_add(1, Ordering::Relaxed);
                let open = self.open.clone();
                (Arc::new(Stored { file, tail: Mutex::default(), open }), 0)
            }
        };
        file.add(text)?;
        *filling = Some(Filling { file: file.clone(), end: at + bytes });
        Ok(SpillRef { file, at, bytes })
    }
}

impl job::SpillStore for SpillStore {
    fn put(&self, text: &str) -> Option<SpillRef> {
        let put = self.put(text);
        put.inspect_err(|error| {
            tracing::warn!(error = %error, dir = %self.dir.display(), "data stays in memory");
        })
        .ok()
    }
}

impl SpillFile for Stored {
    fn read(&self, at: u32, bytes: u32) -> io::Result<String> {
        String::from_utf8(self.bytes(at, bytes)?).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were_and_a_folder_that_is_gone_loses_none() {
        let dir = tempfile::tempdir().expect("there is a folder");
        let spill = SpillStore::in_dir(dir.path());
        let texts: Vec<String> = (0..80).map(|n| format!("{n}").repeat(1 << 19)).collect();
        let places: Vec<SpillRef> =
            texts.iter().map(|text| spill.put(text).expect("there is room")).collect();
        for (text, place) in texts.iter().zip(&places) {
            assert_eq!(&place.file.read(place.at, place.bytes).expect("it is there"), text);
        }
        let first = &places[0].file;
        assert!(!places.iter().all(|place| Arc::ptr_eq(&place.file, first)), "one file has all");
        let nowhere: &dyn job::SpillStore = &SpillStore::in_dir(&dir.path().join("gone"));
        assert!(nowhere.put("x").is_none());
    }
}
