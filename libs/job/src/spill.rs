//! Spill: the store of queued jobs that memory has no room for.
//!
//! A million queued jobs take half a gigabyte that is not read before their turn. The owner of the
//! state can therefore give it a [`SpillStore`]: queued jobs beyond a budget are stored there, and
//! only their ids, versions and queue positions stay in memory.

use std::{fmt, io, sync::Arc};

/// A place outside of memory.
pub trait SpillStore: fmt::Debug + Send + Sync {
    /// Stores a text; `None` if that fails and the text must stay in memory.
    fn put(&self, text: &str) -> Option<SpillRef>;
}

/// The file of spilled texts. It is deleted when its last text is dropped.
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
        text.expect("a spilled text can be read: otherwise the state must be restored")
    }
}

/// A spill store, and how many bytes of jobs stay in memory.
#[derive(Clone, Debug)]
pub(crate) struct SpillPolicy {
    pub store: Arc<dyn SpillStore>,
    pub budget: usize,
}
