//! All jobs by id: in memory, or spilled.
//!
//! Only queued jobs sleep. A table of pointers finds a job by the id behind it: half of a large
//! table is empty, and an empty place costs little.

use std::{io, sync::Arc};

use hashbrown::HashTable;

use crate::{
    Job, JobId, Position, Status,
    spill::{SpillPolicy, SpillRef},
};

/// Memory of a job in addition to its data, in bytes: measured, including the indexes.
const JOB_BYTES: usize = 416;

/// Memory of the history that a traced job has from its enqueue on, in bytes; others have none while
/// they wait.
const TRACED_BYTES: usize = 320;

/// All jobs. Snapshots share them: a change of a shared job copies it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jobs {
    table: HashTable<Entry>,
    /// How much of memory those awake take.
    in_memory_bytes: usize,
}

#[derive(Clone, Debug)]
enum Entry {
    InMemory(Arc<Job>),
    Spilled(Arc<Spilled>),
}

#[derive(Debug)]
struct Spilled {
    id: JobId,
    version: Position,
    spill_ref: SpillRef,
}

impl Entry {
    fn id(&self) -> JobId {
        match self {
            Self::InMemory(job) => job.id,
            Self::Spilled(spilled) => spilled.id,
        }
    }

    fn job(&self) -> Arc<Job> {
        match self {
            Self::InMemory(job) => job.clone(),
            Self::Spilled(spilled) => Arc::new(spilled.load()),
        }
    }

    /// How much of memory it takes, as far as sleep would free that.
    fn bytes(&self) -> usize {
        match self {
            Self::InMemory(job) => {
                // Only what does not change while it is in memory.
                let trace = job.history().trace.as_ref().map_or(0, |_| TRACED_BYTES);
                JOB_BYTES + trace + job.data.get().len()
            }
            Self::Spilled(_) => 0,
        }
    }
}

impl Spilled {
    fn load(&self) -> Job {
        serde_json::from_str(&self.spill_ref.read()).expect("a spilled text is a job")
    }
}

impl Jobs {
    /// The current value of a job.
    pub fn get(&self, id: JobId) -> Option<Arc<Job>> {
        self.slot(id).map(Entry::job)
    }

    /// The version of a job.
    pub fn version(&self, id: JobId) -> Option<Position> {
        self.slot(id).map(|slot| match slot {
            Entry::InMemory(job) => job.version,
            Entry::Spilled(spilled) => spilled.version,
        })
    }

    /// The status of a job.
    pub fn status(&self, id: JobId) -> Option<Status> {
        self.slot(id).map(|slot| match slot {
            Entry::InMemory(job) => job.status,
            Entry::Spilled(_) => Status::Queued,
        })
    }

    /// The JSON of a job that sleeps, and its version.
    pub fn spilled_json(&self, id: JobId) -> Option<(Position, String)> {
        match self.slot(id)? {
            Entry::InMemory(_) => None,
            Entry::Spilled(spilled) => Some((spilled.version, spilled.spill_ref.read())),
        }
    }

    /// Whether a job is known.
    pub fn contains(&self, id: JobId) -> bool {
        self.slot(id).is_some()
    }

    /// A job, awake from here on, to be changed in anything but its id and its data.
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        let Self { table, in_memory_bytes } = self;
        let slot = table.find_mut(hash(id), |slot| slot.id() == id)?;
        if let Entry::Spilled(spilled) = slot {
            *slot = Entry::InMemory(Arc::new(spilled.load()));
            *in_memory_bytes += slot.bytes();
        }
        match slot {
            Entry::InMemory(job) => Some(Arc::make_mut(job)),
            Entry::Spilled(_) => None,
        }
    }

    /// Inserts a job, and replaces one with the same id; spills it if memory is full. `json` is the
    /// serialized job, if available.
    pub fn insert(&mut self, job: Job, json: Option<&str>, spill: Option<&SpillPolicy>) {
        self.remove(job.id);
        let id = job.id;
        let slot = self.placed(Entry::InMemory(Arc::new(job)), json, spill);
        self.in_memory_bytes += slot.bytes();
        self.table.insert_unique(hash(id), slot, |slot| hash(slot.id()));
    }

    /// Spills a job if that is possible and memory is full.
    pub fn spill_if_full(&mut self, id: JobId, spill: Option<&SpillPolicy>) {
        if spill.is_none_or(|spill| self.in_memory_bytes <= spill.budget) {
            return;
        }
        let Some(slot) = self.slot(id).cloned() else { return };
        let before = slot.bytes();
        self.in_memory_bytes -= before;
        let slot = self.placed(slot, None, spill);
        self.in_memory_bytes += slot.bytes();
        if let Some(spill_ref) = self.table.find_mut(hash(id), |slot| slot.id() == id) {
            *spill_ref = slot;
        }
    }

    pub fn remove(&mut self, id: JobId) {
        if let Ok(found) = self.table.find_entry(hash(id), |slot| slot.id() == id) {
            let (slot, _) = found.remove();
            self.in_memory_bytes -= slot.bytes();
        }
    }

    /// Removes ended jobs that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&Job) -> bool) {
        let Self { table, in_memory_bytes } = self;
        table.retain(|slot| {
            let kept = match slot {
                Entry::InMemory(job) => !job.status.is_terminal() || keep(job),
                Entry::Spilled(_) => true,
            };
            if !kept {
                *in_memory_bytes -= slot.bytes();
            }
            kept
        });
    }

    /// All jobs, those that sleep read one by one.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Job>> {
        self.table.iter().map(Entry::job)
    }

    /// The jobs that are awake: all but some of the queued ones.
    pub fn in_memory(&self) -> impl Iterator<Item = &Job> {
        self.table.iter().filter_map(|slot| match slot {
            Entry::InMemory(job) => Some(&**job),
            Entry::Spilled(_) => None,
        })
    }

    /// The status and version of every job.
    pub fn versions(&self) -> impl Iterator<Item = (JobId, Status, Position)> {
        self.table.iter().map(|slot| match slot {
            Entry::InMemory(job) => (job.id, job.status, job.version),
            Entry::Spilled(spilled) => (spilled.id, Status::Queued, spilled.version),
        })
    }

    /// The current jobs, in no order.
    pub fn frozen(&self) -> FrozenJobs {
        FrozenJobs(self.table.iter().cloned().collect())
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    fn slot(&self, id: JobId) -> Option<&Entry> {
        self.table.find(hash(id), |slot| slot.id() == id)
    }

    /// The entry of a job, spilled if memory is full.
    fn placed(&self, slot: Entry, json: Option<&str>, spill: Option<&SpillPolicy>) -> Entry {
        let (Entry::InMemory(job), Some(spill)) = (&slot, spill) else { return slot };
        if job.status != Status::Queued || self.in_memory_bytes + slot.bytes() <= spill.budget {
            return slot;
        }
        let (id, version) = (job.id, job.version);
        let spill_ref = match json {
            Some(json) => spill.store.put(json),
            None => spill.store.put(&serde_json::to_string(job).expect("a job is JSON")),
        };
        match spill_ref {
            Some(spill_ref) => Entry::Spilled(Arc::new(Spilled { id, version, spill_ref })),
            None => slot,
        }
    }
}

/// The jobs of one moment, to be written down: a list, which takes half of what a table does.
#[derive(Debug)]
pub(crate) struct FrozenJobs(Vec<Entry>);

impl FrozenJobs {
    /// Writes each job as a line of JSON, and frees it.
    pub fn write(self, to: &mut dyn io::Write) -> io::Result<()> {
        for slot in self.0 {
            match slot {
                Entry::InMemory(job) => serde_json::to_writer(&mut *to, &job)?,
                Entry::Spilled(spilled) => to.write_all(spilled.spill_ref.read().as_bytes())?,
            }
            to.write_all(b"\n")?;
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl PartialEq for FrozenJobs {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |frozen: &Self| {
            let mut jobs: Vec<Arc<Job>> = frozen.0.iter().map(Entry::job).collect();
            jobs.sort_unstable_by_key(|job| job.id);
            jobs
        };
        sorted(self) == sorted(other)
    }
}

impl PartialEq for Jobs {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|job| other.get(job.id) == Some(job))
    }
}

/// Ids are random where clients cannot choose them, which is everywhere; the odd factor (2^64
/// over the golden ratio) spreads those that are numbered, too.
fn hash(id: JobId) -> u64 {
    let (high, low) = id.as_u64_pair();
    (high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
