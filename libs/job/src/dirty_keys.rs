//! Keys of the bucket that must be written.

use std::collections::{HashSet, VecDeque};

use crate::{Digest, JobId, Position, time::Millis};

/// Changes of active jobs that are queued for the bucket; the rest stays in memory only.
const LIVE_MAX: usize = 65_536;

/// A key of the bucket that must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DirtyKey {
    /// A job.
    Job(JobId),
    /// An answer under an idempotency key.
    Reply(Digest),
}

/// Keys of the bucket that are behind.
#[derive(Debug, Default)]
pub(crate) struct DirtyKeys {
    /// Ended jobs and answers, each once, in the order of their first change.
    pub order: VecDeque<(Position, DirtyKey)>,
    pub members: HashSet<DirtyKey>,
    /// Jobs that were live, with the time of their change.
    pub live: VecDeque<(Millis, JobId)>,
    /// Whether a replay is under way: its end finds out what the bucket is behind with.
    pub replaying: bool,
}

impl DirtyKeys {
    pub fn push(&mut self, position: Position, what: DirtyKey) {
        if !self.replaying && self.members.insert(what) {
            self.order.push_back((position, what));
        }
    }

    pub fn push_live(&mut self, at: Millis, id: JobId) {
        if !self.replaying && self.live.len() < LIVE_MAX {
            self.live.push_back((at, id));
        }
    }
}
