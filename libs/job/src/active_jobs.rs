//! The active jobs of a project, indexed by what they can be listed by.

use std::{
    collections::{BTreeSet, BinaryHeap},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Bound,
};

use crate::{Id, Job, JobId, JobType, Status};

/// The statuses of active jobs.
const ACTIVE: [Status; 2] = [Status::Queued, Status::Processing];

fn data_bytes(job: &Job) -> u64 {
    job.data.get().len() as u64
}

/// The active jobs of a project. Each index is in the order of the ids, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ActiveJobs {
    /// By the [`key`](batch_key) of their batch.
    batches: BTreeSet<(u64, JobId)>,
    /// The bytes of their data.
    bytes: u64,
    /// By type and status.
    listed: [[BTreeSet<JobId>; ACTIVE.len()]; JobType::EVERY.len()],
}

impl ActiveJobs {
    /// Adds an active job; does nothing for a terminal one.
    pub fn insert(&mut self, job: &Job) {
        if let Some(listed) = self.listed(job.job_type, job.status)
            && listed.insert(job.id)
        {
            self.batches.insert((batch_key(&job.batch), job.id));
            self.bytes += data_bytes(job);
        }
    }

    /// The bytes of the data of all active jobs.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves a job that had another status before.
    pub fn changed(&mut self, before: Status, job: &Job) {
        if before == job.status {
            return;
        }
        if let Some(listed) = self.listed(job.job_type, before) {
            listed.remove(&job.id);
        }
        match self.listed(job.job_type, job.status) {
            Some(listed) => drop(listed.insert(job.id)),
            None => {
                self.batches.remove(&(batch_key(&job.batch), job.id));
                self.bytes -= data_bytes(job);
            }
        }
    }

    fn listed(&mut self, job_type: JobType, status: Status) -> Option<&mut BTreeSet<JobId>> {
        let at = ACTIVE.iter().position(|active| *active == status)?;
        Some(&mut self.listed[job_type as usize][at])
    }

    /// Whether an active job is of a type.
    pub fn is_of(&self, job_type: JobType, id: JobId) -> bool {
        self.listed[job_type as usize].iter().any(|listed| listed.contains(&id))
    }

    /// Whether a job is active.
    pub fn contains(&self, id: JobId) -> bool {
        JobType::EVERY.into_iter().any(|job_type| self.is_of(job_type, id))
    }

    /// The jobs behind a place, by batch key and id.
    pub fn after(&self, after: Option<(u64, JobId)>) -> impl Iterator<Item = (u64, JobId)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.batches.range((from, Bound::Unbounded)).copied()
    }

    /// The jobs of all batches with this key that follow `after`.
    pub fn of_key_after(&self, key: u64, after: Option<JobId>) -> impl Iterator<Item = JobId> {
        let from =
            after.map_or(Bound::Included((key, JobId::nil())), |id| Bound::Excluded((key, id)));
        let to = Bound::Included((key, JobId::max()));
        self.batches.range((from, to)).map(|(_, id)| *id)
    }

    /// The jobs of all batches with this key.
    pub fn of_key(&self, key: u64) -> impl DoubleEndedIterator<Item = (u64, JobId)> {
        self.batches.range((key, JobId::nil())..=(key, JobId::max())).copied()
    }

    /// How many jobs are of a type and status, of all if absent.
    pub fn count(&self, job_type: Option<JobType>, status: Option<Status>) -> usize {
        self.sets(job_type, status).map(BTreeSet::len).sum()
    }

    /// The jobs of a type and status (of all if absent) that follow `after` in the order of ids: at most `limit`.
    pub fn oldest(
        &self,
        job_type: Option<JobType>,
        status: Option<Status>,
        after: Option<JobId>,
        limit: usize,
    ) -> Vec<JobId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sets = self.sets(job_type, status);
        let heads = sets.flat_map(|set| set.range((from, Bound::Unbounded)).take(limit));
        let mut ids: Vec<JobId> = heads.copied().collect();
        ids.sort_unstable();
        ids.truncate(limit);
        ids
    }

    /// The jobs of all batches with the key of this one whose id is below `before`, the newest first.
    pub fn newest_of_batch(&self, batch: &Id, before: JobId) -> Vec<Newest<'_>> {
        let key = batch_key(batch);
        let ids = self.batches.range((key, JobId::nil())..(key, before)).rev().map(|(_, id)| *id);
        vec![Box::new(ids)]
    }

    /// The jobs of a type and status, of all if absent, whose id is below `before`: sequences, each with the
    /// newest first.
    pub fn newest(
        &self,
        job_type: Option<JobType>,
        status: Option<Status>,
        before: JobId,
    ) -> Vec<Newest<'_>> {
        let sets = self.sets(job_type, status);
        sets.map(|set| Box::new(set.range(..before).rev().copied()) as Newest<'_>).collect()
    }

    /// The sets of a type and status, of all if absent, that are not empty.
    fn sets(
        &self,
        job_type: Option<JobType>,
        status: Option<Status>,
    ) -> impl Iterator<Item = &BTreeSet<JobId>> {
        let job_types = JobType::EVERY
            .into_iter()
            .filter(move |of| job_type.is_none_or(|job_type| job_type == *of));
        let sets = job_types.flat_map(|of| ACTIVE.into_iter().zip(&self.listed[of as usize]));
        let sets = sets
            .filter(move |(of, set)| status.is_none_or(|status| status == *of) && !set.is_empty());
        sets.map(|(_, set)| set)
    }
}

/// Ids of jobs, the newest first.
pub(crate) type Newest<'a> = Box<dyn Iterator<Item = JobId> + 'a>;

/// Several sequences as one, the newest first.
pub(crate) fn newest_first<'a>(
    sequences: impl Iterator<Item = Newest<'a>>,
) -> impl Iterator<Item = JobId> {
    let mut sequences: Vec<Newest<'a>> = sequences.collect();
    let heads = sequences.iter_mut().enumerate().filter_map(|(n, ids)| Some((ids.next()?, n)));
    let mut heads: BinaryHeap<(JobId, usize)> = heads.collect();
    std::iter::from_fn(move || {
        let (newest, n) = heads.pop()?;
        heads.extend(sequences[n].next().map(|next| (next, n)));
        Some(newest)
    })
}

/// A 64-bit key that stands for a batch id. The ids of a million jobs would take too much memory.
/// Two batches can share a key.
pub(crate) fn batch_key(batch: &Id) -> u64 {
    let mut hasher = DefaultHasher::new();
    batch.hash(&mut hasher);
    hasher.finish()
}
