//! What the bucket is behind with: keys that changed and are to be written, and what memory lets
//! go once they are.
//!
//! Memory needs the bucket for jobs that have ended: those are written at once. Who asks for a
//! live one is answered from memory, so that the bucket is told later of those that still live
//! then: most have ended.

use std::collections::{HashSet, VecDeque};

use crate::{Digest, JobId, Position, State, time::Millis};

/// Beyond this many places an empty queue lets go of its memory.
const CAPACITY_KEPT: usize = 10_000;

/// Changes of live jobs that are remembered until the bucket is told; what comes faster than they
/// are written is left to memory.
const LIVE_MAX: usize = 65_536;

/// Something that the bucket is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queued {
    /// A job.
    Job(JobId),
    /// An answer under an idempotency key.
    Answer(Digest),
}

/// Keys of the bucket that are behind.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Ended jobs and answers, each once, in the order of their first change.
    pub order: VecDeque<(Position, Queued)>,
    pub members: HashSet<Queued>,
    /// Jobs that were live, with the time of their change.
    live: VecDeque<(Millis, JobId)>,
    /// Whether a replay is under way: its end finds out what the bucket is behind with.
    pub replaying: bool,
}

impl Touched {
    pub fn push(&mut self, position: Position, what: Queued) {
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

impl State {
    /// Begins a replay, which [`settle`](Self::settle) ends: until then nobody asks what the
    /// bucket is behind with.
    pub fn begin_replay(&mut self) {
        self.touched = Touched { replaying: true, ..Touched::default() };
    }

    /// Ends a start: `covered` is the last event up to which the bucket has all that ended. What
    /// ended after it is to be written again, and ended jobs that it has are let go. Which live
    /// jobs it has nobody knows.
    pub fn settle(&mut self, covered: Position) {
        let known = &mut self.known;
        known.jobs.retain(|job| job.version > covered);
        known.answers.retain(|_, (position, _)| *position > covered);
        let mut touched = Touched::default();
        let mut behind = Vec::new();
        for (id, status, version) in known.jobs.versions() {
            match status.is_terminal() {
                true => behind.push((version, Queued::Job(id))),
                false => touched.push_live(known.at, id),
            }
        }
        behind.extend(known.answers.iter().map(|(key, (at, _))| (*at, Queued::Answer(*key))));
        behind.sort_unstable_by_key(|(at, _)| *at);
        for (at, what) in behind {
            touched.push(at, what);
        }
        self.touched = touched;
    }

    /// Up to `max` jobs that changed before `before` and live, oldest change first.
    pub fn waiting(&mut self, before: Millis, max: usize) -> Vec<Queued> {
        let mut waiting = Vec::new();
        while waiting.len() < max
            && let Some((_, id)) = self.touched.live.front().copied().filter(|(at, _)| *at < before)
        {
            self.touched.live.pop_front();
            if self.known.jobs.status(id).is_some_and(|status| !status.is_terminal()) {
                waiting.push(Queued::Job(id));
            }
        }
        waiting
    }

    /// When the first of the live jobs changed that the bucket is to be told of.
    pub fn waits_since(&self) -> Option<Millis> {
        self.touched.live.front().map(|(at, _)| *at)
    }

    /// Up to `max` ended jobs and answers that the bucket is behind with, oldest change first.
    pub fn behind(&mut self, max: usize) -> Vec<Queued> {
        let taken = self.touched.order.len().min(max);
        let mut behind = Vec::with_capacity(taken);
        for (_, what) in self.touched.order.drain(..taken) {
            self.touched.members.remove(&what);
            behind.push(what);
        }
        if self.touched.order.is_empty() && self.touched.order.capacity() > CAPACITY_KEPT {
            self.touched.order = VecDeque::new();
            self.touched.members = HashSet::new();
        }
        behind
    }

    /// How many ended jobs and answers the bucket is behind with.
    pub fn behind_by(&self) -> usize {
        self.touched.order.len()
    }

    /// Whether the bucket is behind with an ended job or an answer.
    pub fn is_behind(&self) -> bool {
        !self.touched.order.is_empty()
    }

    /// Up to which event the bucket has all that ended, once all that [`behind`](Self::behind) gave
    /// out so far is written.
    pub fn covered(&self) -> Position {
        match self.touched.order.front() {
            None => self.known.position,
            Some((first, _)) if first.index > 0 => Position::new(first.sequence, first.index - 1),
            Some((first, _)) => Position::new(first.sequence - 1, u32::MAX),
        }
    }

    /// For one that does not write the bucket: lets go of what the bucket has, which is all that
    /// ended up to `covered`.
    pub fn forget(&mut self, covered: Position) {
        while self.touched.order.front().is_some_and(|(at, _)| *at <= covered) {
            let Some((_, what)) = self.touched.order.pop_front() else { return };
            self.touched.members.remove(&what);
            let version = match what {
                Queued::Job(id) => self.known.jobs.version(id),
                Queued::Answer(key) => self.known.answers.get(&key).map(|(at, _)| *at),
            };
            match version {
                Some(version) if version > covered => self.touched.push(version, what),
                Some(version) => self.stored(what, version),
                None => {}
            }
        }
    }

    /// Lets go of what the bucket has: an ended job at this version, an answer.
    pub fn stored(&mut self, what: Queued, version: Position) {
        match what {
            Queued::Answer(key) => {
                self.known.answers.remove(&key);
            }
            Queued::Job(id) => {
                if self.known.jobs.version(id) != Some(version) {
                    return;
                }
                match self.known.jobs.status(id) {
                    Some(status) if status.is_terminal() => self.known.jobs.remove(id),
                    _ => self.known.jobs.rest(id, self.room.as_ref()),
                }
            }
        }
    }
}
