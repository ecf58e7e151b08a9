//! The attic: where jobs wait that memory has no room for.
//!
//! A million queued jobs are half a gigabyte that nobody looks at before their turn comes. So who
//! keeps the state may give it an [`Attic`]; queued jobs beyond a budget are put there, and only
//! their ids, versions and places in the queue stay.

use std::{fmt, io, sync::Arc};

/// A place outside of memory.
pub trait Attic: fmt::Debug + Send + Sync {
    /// Puts a text away; `None` where it cannot be, and has to stay in memory.
    fn put(&self, text: &str) -> Option<Place>;
}

/// What holds texts that were put away. It goes when nothing in it is wanted any more.
pub trait Shelf: fmt::Debug + Send + Sync {
    /// The text at `at`, of `bytes` bytes.
    ///
    /// # Errors
    /// Where it cannot be read: the state is worth nothing then, and has to be restored.
    fn read(&self, at: u32, bytes: u32) -> io::Result<String>;
}

/// Where a text was put away.
#[derive(Clone, Debug)]
pub struct Place {
    /// What holds it.
    pub shelf: Arc<dyn Shelf>,
    /// Where it begins there.
    pub at: u32,
    /// How long it is.
    pub bytes: u32,
}

impl Place {
    pub(crate) fn read(&self) -> String {
        let text = self.shelf.read(self.at, self.bytes);
        text.expect("the attic can be read: without it the state has to be restored")
    }
}

/// An attic, and how many bytes of jobs stay in memory.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub attic: Arc<dyn Attic>,
    pub budget: usize,
}
