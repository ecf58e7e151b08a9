//! The attic: files without a name, which hold queued jobs that memory has no room for.
//!
//! A file is written to its end and never changed; it goes, with its space on the disk, when the
//! last job in it has been forgotten or the process ends. Nothing in it has to outlive the
//! process: a start reads the snapshot and EVENTS, and puts away anew.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use job::{Place, Shelf};

/// The size of a file. One straggler keeps it.
const FILE_BYTES_MAX: u32 = 16 << 20;

/// Puts texts away below a folder.
#[derive(Debug)]
pub(crate) struct Attic {
    dir: PathBuf,
    filling: Mutex<Option<Filling>>,
}

#[derive(Debug)]
struct Filling {
    file: Arc<Stored>,
    end: u32,
}

#[derive(Debug)]
struct Stored(File);

impl Attic {
    /// Puts away below `dir`, which must be there.
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), filling: Mutex::default() }
    }

    fn put(&self, text: &str) -> io::Result<Place> {
        let bytes = u32::try_from(text.len()).map_err(io::Error::other)?;
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, at) = match &*filling {
            Some(Filling { file, end }) if bytes <= FILE_BYTES_MAX.saturating_sub(*end) => {
                (file.clone(), *end)
            }
            _ => (Arc::new(Stored(tempfile::tempfile_in(&self.dir)?)), 0),
        };
        file.0.write_all_at(text.as_bytes(), u64::from(at))?;
        *filling = Some(Filling { file: file.clone(), end: at + bytes });
        Ok(Place { shelf: file, at, bytes })
    }
}

impl job::Attic for Attic {
    fn put(&self, text: &str) -> Option<Place> {
        let put = self.put(text);
        put.inspect_err(|error| {
            tracing::warn!(error = %error, dir = %self.dir.display(), "data stays in memory");
        })
        .ok()
    }
}

impl Shelf for Stored {
    fn read(&self, at: u32, bytes: u32) -> io::Result<String> {
        let mut text = vec![0; bytes as usize];
        self.0.read_exact_at(&mut text, u64::from(at))?;
        String::from_utf8(text).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were_and_a_folder_that_is_gone_loses_none() {
        let dir = tempfile::tempdir().expect("there is a folder");
        let attic = Attic::in_dir(dir.path());
        let texts: Vec<String> = (0..40).map(|n| format!("{n}").repeat(1 << 19)).collect();
        let places: Vec<Place> =
            texts.iter().map(|text| attic.put(text).expect("there is room")).collect();
        for (text, place) in texts.iter().zip(&places) {
            assert_eq!(&place.shelf.read(place.at, place.bytes).expect("it is there"), text);
        }
        let first = &places[0].shelf;
        assert!(!places.iter().all(|place| Arc::ptr_eq(&place.shelf, first)), "one file has all");
        let nowhere: &dyn job::Attic = &Attic::in_dir(&dir.path().join("gone"));
        assert!(nowhere.put("x").is_none());
    }
}
