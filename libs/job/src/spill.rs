//! The attic: where jobs wait that memory has no room for.
//!
//! A million queued jobs are half a gigabyte that nobody looks at before their turn comes. So who
//! keeps the state may give it an [`SpillStore`]; queued jobs beyond a budget are put there, and only
//! their ids, versions and places in the queue stay.

use std::{fmt, io, sync::Arc};

/// A place outside of memory.
pub trait SpillStore: fmt::Debug + Send + Sync {
    /// Stores a text; `None` if that fails and the text must stay in memory.
    fn put(&self, text: &str) -> Option<SpillRef>;
}

/// What holds texts that were put away. It goes when nothing in it is wanted any more.
pub trait SpillFile: fmt::Debug + Send + Sync {
    /// The text at `at`, of `bytes` bytes.
    ///
    /// # Errors
    /// If it cannot be read. The state is then lost and must be restored.
    fn read(&self, at: u32, bytes: u32) -> io::Result<String>;
}

/// A reference to a spilled text.
#[derive(Clone, Debug)]
pub struct SpillRef {
    /// What holds it.
    pub file: Arc<dyn SpillFile>,
    /// The offset of its first byte.
    pub at: u32,
    /// How long it is.
    pub bytes: u32,
}

impl SpillRef {
    pub(crate) fn read(&self) -> String {
        let text = self.file.read(self.at, self.bytes);
        text.expect("the attic can be read: without it the state has to be restored")
    }
}

/// An attic, and how many bytes of jobs stay in memory.
#[derive(Clone, Debug)]
pub(crate) struct SpillPolicy {
    pub store: Arc<dyn SpillStore>,
    pub budget: usize,
}
