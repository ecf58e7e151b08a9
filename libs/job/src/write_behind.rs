//! Keys of the bucket that must be written, and eviction of what the bucket holds.
//!
//! Terminal jobs must reach the bucket before memory can evict them, so they are written at once.
//! Queries for active jobs are answered from memory, so the bucket gets them later, if they are
//! still active then; most are not.

use std::collections::{HashSet, VecDeque};

use crate::{
    Position, State,
    dirty_keys::{DirtyKey, DirtyKeys},
    time::Millis,
};

/// An empty queue with a larger capacity frees its memory.
const CAPACITY_KEPT: usize = 10_000;

impl State {
    /// Starts a replay, which [`settle`](Self::settle) ends: until then the dirty keys are not
    /// read.
    pub fn begin_replay(&mut self) {
        self.dirty = DirtyKeys { replaying: true, ..DirtyKeys::default() };
    }

    /// Ends a start. `covered` is the last event up to which the bucket has all terminal jobs.
    /// Later ones are written again, earlier ones are evicted. Which active jobs the bucket has is
    /// unknown.
    pub fn settle(&mut self, covered: Position) {
        let persisted = &mut self.persisted;
        persisted.jobs.retain(|job| job.version > covered);
        persisted.answers.retain(|_, (position, _)| *position > covered);
        let mut dirty = DirtyKeys::default();
        let mut behind = Vec::new();
        for (id, status, version) in persisted.jobs.versions() {
            match status.is_terminal() {
                true => behind.push((version, DirtyKey::Job(id))),
                false => dirty.push_live(persisted.at, id),
            }
        }
        behind.extend(persisted.answers.iter().map(|(key, (at, _))| (*at, DirtyKey::Reply(*key))));
        behind.sort_unstable_by_key(|(at, _)| *at);
        for (at, what) in behind {
            dirty.push(at, what);
        }
        self.dirty = dirty;
    }

    /// Up to `max` jobs that changed before `before` and live, oldest change first.
    pub fn waiting(&mut self, before: Millis, max: usize) -> Vec<DirtyKey> {
        let mut waiting = Vec::new();
        while waiting.len() < max
            && let Some((_, id)) = self.dirty.live.front().copied().filter(|(at, _)| *at < before)
        {
            self.dirty.live.pop_front();
            if self.persisted.jobs.status(id).is_some_and(|status| !status.is_terminal()) {
                waiting.push(DirtyKey::Job(id));
            }
        }
        waiting
    }

    /// When the first active job changed that must be written to the bucket.
    pub fn waits_since(&self) -> Option<Millis> {
        self.dirty.live.front().map(|(at, _)| *at)
    }

    /// Up to `max` ended jobs and answers that the bucket is behind with, oldest change first.
    pub fn behind(&mut self, max: usize) -> Vec<DirtyKey> {
        let taken = self.dirty.order.len().min(max);
        let mut behind = Vec::with_capacity(taken);
        for (_, what) in self.dirty.order.drain(..taken) {
            self.dirty.members.remove(&what);
            behind.push(what);
        }
        if self.dirty.order.is_empty() && self.dirty.order.capacity() > CAPACITY_KEPT {
            self.dirty.order = VecDeque::new();
            self.dirty.members = HashSet::new();
        }
        behind
    }

    /// How many ended jobs and answers the bucket is behind with.
    pub fn behind_by(&self) -> usize {
        self.dirty.order.len()
    }

    /// Whether the bucket is behind with an ended job or an answer.
    pub fn is_behind(&self) -> bool {
        !self.dirty.order.is_empty()
    }

    /// Up to which event the bucket has all that ended, once all that [`behind`](Self::behind) gave
    /// out so far is written.
    pub fn covered(&self) -> Position {
        match self.dirty.order.front() {
            None => self.persisted.position,
            Some((first, _)) if first.index > 0 => Position::new(first.sequence, first.index - 1),
            Some((first, _)) => Position::end_of(first.sequence - 1),
        }
    }

    /// For a follower, which does not write the bucket: evicts what the bucket holds, which is
    /// every job that became terminal up to `covered`.
    pub fn forget(&mut self, covered: Position) {
        while self.dirty.order.front().is_some_and(|(at, _)| *at <= covered) {
            let Some((_, what)) = self.dirty.order.pop_front() else { return };
            self.dirty.members.remove(&what);
            let version = match what {
                DirtyKey::Job(id) => self.persisted.jobs.version(id),
                DirtyKey::Reply(key) => self.persisted.answers.get(&key).map(|(at, _)| *at),
            };
            match version {
                Some(version) if version > covered => self.dirty.push(version, what),
                Some(version) => self.stored(what, version),
                None => {}
            }
        }
    }

    /// Lets go of what the bucket has: an ended job at this version, an answer.
    pub fn stored(&mut self, what: DirtyKey, version: Position) {
        match what {
            DirtyKey::Reply(key) => {
                self.persisted.answers.remove(&key);
            }
            DirtyKey::Job(id) => {
                if self.persisted.jobs.version(id) != Some(version) {
                    return;
                }
                match self.persisted.jobs.status(id) {
                    Some(status) if status.is_terminal() => self.persisted.jobs.remove(id),
                    _ => self.persisted.jobs.spill_if_full(id, self.spill.as_ref()),
                }
            }
        }
    }
}
