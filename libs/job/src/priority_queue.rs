//! The queued jobs of a project in a class: the lowest priority number first, then the oldest.
//!
//! Most jobs join at the end of their number's queue and leave from its front, so a plain queue
//! holds those, at half the memory of a tree. The few that return from a retry are kept in a tree.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{Job, JobId, Position};

/// What decides which of two queued jobs of a project runs first, the smaller key: priority number,
/// then age, then id.
pub(crate) type QueueKey = (u16, Position, JobId);

/// The key of a job in the queue.
pub(crate) fn queue_key(job: &Job) -> QueueKey {
    (job.priority, job.order, job.id)
}

/// A queue in the order of its keys. A job that leaves from the middle leaves a tombstone.
#[derive(Debug, Default)]
pub(crate) struct PriorityQueue {
    queues: BTreeMap<u16, VecDeque<(Position, JobId)>>,
    returned: BTreeSet<QueueKey>,
    tombstones: usize,
    len: usize,
}

/// A queue of so many places keeps its room, however short it grows.
const CAPACITY_KEPT: usize = 64;

/// Marks the slot of a removed job.
const TOMBSTONE: JobId = JobId::nil();

impl PriorityQueue {
    /// Takes a job in; whether it was not there yet.
    pub fn insert(&mut self, queue_key: QueueKey) -> bool {
        let (number, age, id) = queue_key;
        if self.returned.contains(&queue_key) {
            return false;
        }
        let queue = self.queues.entry(number).or_default();
        let new = if queue.back().is_none_or(|(last, _)| *last < age) {
            queue.push_back((age, id));
            true
        } else {
            let there = queue.binary_search_by_key(&age, |(age, _)| *age);
            !there.is_ok_and(|at| queue[at].1 == id) && self.returned.insert(queue_key)
        };
        self.len += usize::from(new);
        new
    }

    /// Takes a job out; whether it was there.
    pub fn remove(&mut self, queue_key: &QueueKey) -> bool {
        let was_there = self.returned.remove(queue_key) || self.remove_queued(queue_key);
        self.len -= usize::from(was_there);
        was_there
    }

    /// True if a job is in the queue.
    pub fn contains(&self, queue_key: &QueueKey) -> bool {
        let (number, age, id) = queue_key;
        let queued = || {
            let queue = self.queues.get(number)?;
            let at = queue.binary_search_by_key(age, |(age, _)| *age).ok()?;
            Some(queue[at].1 == *id)
        };
        self.returned.contains(queue_key) || queued() == Some(true)
    }

    /// The first in the line.
    pub fn first(&self) -> Option<QueueKey> {
        let queued = self
            .queues
            .first_key_value()
            .and_then(|(number, queue)| queue.front().map(|(age, id)| (*number, *age, *id)));
        let returned = self.returned.first().copied();
        queued.into_iter().chain(returned).min()
    }

    /// The first jobs of each number, with their ages: of those that joined at the end and of those that returned.
    pub fn firsts(&self) -> impl Iterator<Item = (Position, JobId)> {
        let queued = self.queues.values().filter_map(|queue| queue.front().copied());
        let mut from = 0;
        let returned = std::iter::from_fn(move || {
            let start = (from, Position::default(), JobId::nil());
            let (number, age, id) = *self.returned.range(start..).next()?;
            from = number + 1;
            Some((age, id))
        });
        queued.chain(returned)
    }

    /// True if the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn remove_queued(&mut self, (number, age, id): &QueueKey) -> bool {
        let Some(queue) = self.queues.get_mut(number) else { return false };
        let Ok(at) = queue.binary_search_by_key(age, |(age, _)| *age) else { return false };
        if queue[at].1 != *id {
            return false;
        }
        queue[at].1 = TOMBSTONE;
        self.tombstones += 1;
        // No hole is ever at the front.
        while queue.front().is_some_and(|(_, id)| *id == TOMBSTONE) {
            queue.pop_front();
            self.tombstones -= 1;
        }
        if queue.is_empty() {
            self.queues.remove(number);
        } else if queue.capacity() > CAPACITY_KEPT && queue.len() < queue.capacity() / 4 {
            queue.shrink_to(queue.len() * 2);
        }
        if self.tombstones > self.len {
            for queue in self.queues.values_mut() {
                queue.retain(|(_, id)| *id != TOMBSTONE);
            }
            self.tombstones = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever joins and leaves, the line is that of a sorted set.
        #[test]
        fn a_line_is_a_sorted_set(
            actions in prop::collection::vec((0..3u16, 1..40u64, 0..4u8), 1..200),
        ) {
            let (mut line, mut set) = (PriorityQueue::default(), BTreeSet::new());
            for (number, age, what) in actions {
                let id = JobId::from_u128(u128::from(age) << 16 | u128::from(number));
                let queue_key = (number, Position::new(age, u32::from(number)), id);
                match what {
                    0 | 1 => prop_assert_eq!(line.insert(queue_key), set.insert(queue_key)),
                    2 => prop_assert_eq!(line.remove(&queue_key), set.remove(&queue_key)),
                    _ => if let Some(first) = set.pop_first() {
                        prop_assert!(line.remove(&first));
                    },
                }
                prop_assert_eq!(line.first(), set.first().copied());
                prop_assert_eq!(line.firsts().min(), set.iter().map(|(_, age, id)| (*age, *id)).min());
                prop_assert_eq!(line.contains(&queue_key), set.contains(&queue_key));
                prop_assert_eq!(line.is_empty(), set.is_empty());
            }
        }
    }
}
