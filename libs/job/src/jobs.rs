//! The jobs that are known, by id: awake in memory, or asleep in the attic.
//!
//! Only queued jobs sleep. A table of pointers finds a job by the id behind it: half of a large
//! table is empty, and an empty place costs little.

use std::{io, sync::Arc};

use hashbrown::HashTable;

use crate::{
    Job, JobId, Position, Status,
    attic::{Place, Room},
};

/// What a job takes in memory beside its data, in bytes: measured, with what points to it.
const JOB_BYTES: usize = 400;

/// Jobs, each shared with whoever writes the state down: a change of a job copies it then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jobs {
    table: HashTable<Slot>,
    /// How much of memory those awake take.
    awake_bytes: usize,
}

#[derive(Clone, Debug)]
enum Slot {
    Awake(Arc<Job>),
    Asleep(Arc<Asleep>),
}

#[derive(Debug)]
struct Asleep {
    id: JobId,
    version: Position,
    place: Place,
}

impl Slot {
    fn id(&self) -> JobId {
        match self {
            Self::Awake(job) => job.id,
            Self::Asleep(asleep) => asleep.id,
        }
    }

    fn job(&self) -> Arc<Job> {
        match self {
            Self::Awake(job) => job.clone(),
            Self::Asleep(asleep) => Arc::new(asleep.wake()),
        }
    }

    /// How much of memory it takes, as far as sleep would free that.
    fn bytes(&self) -> usize {
        match self {
            Self::Awake(job) => JOB_BYTES + job.data.get().len(),
            Self::Asleep(_) => 0,
        }
    }
}

impl Asleep {
    fn wake(&self) -> Job {
        serde_json::from_str(&self.place.read()).expect("what was put away is a job")
    }
}

impl Jobs {
    /// A job, as it is now.
    pub fn get(&self, id: JobId) -> Option<Arc<Job>> {
        self.slot(id).map(Slot::job)
    }

    /// The version of a job.
    pub fn version(&self, id: JobId) -> Option<Position> {
        self.slot(id).map(|slot| match slot {
            Slot::Awake(job) => job.version,
            Slot::Asleep(asleep) => asleep.version,
        })
    }

    /// Where a job stands.
    pub fn status(&self, id: JobId) -> Option<Status> {
        self.slot(id).map(|slot| match slot {
            Slot::Awake(job) => job.status,
            Slot::Asleep(_) => Status::Queued,
        })
    }

    /// The JSON of a job that sleeps, and its version.
    pub fn asleep_json(&self, id: JobId) -> Option<(Position, String)> {
        match self.slot(id)? {
            Slot::Awake(_) => None,
            Slot::Asleep(asleep) => Some((asleep.version, asleep.place.read())),
        }
    }

    /// Whether a job is known.
    pub fn contains(&self, id: JobId) -> bool {
        self.slot(id).is_some()
    }

    /// A job, awake from here on, to be changed in anything but its id and its data.
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        let Self { table, awake_bytes } = self;
        let slot = table.find_mut(hash(id), |slot| slot.id() == id)?;
        if let Slot::Asleep(asleep) = slot {
            *slot = Slot::Awake(Arc::new(asleep.wake()));
            *awake_bytes += slot.bytes();
        }
        match slot {
            Slot::Awake(job) => Some(Arc::make_mut(job)),
            Slot::Asleep(_) => None,
        }
    }

    /// Takes in a job in the place of the one with its id; it sleeps where there is no room.
    /// `json` is the job's, where it is at hand.
    pub fn insert(&mut self, job: Job, json: Option<&str>, room: Option<&Room>) {
        self.remove(job.id);
        let id = job.id;
        let slot = self.settled(Slot::Awake(Arc::new(job)), json, room);
        self.awake_bytes += slot.bytes();
        self.table.insert_unique(hash(id), slot, |slot| hash(slot.id()));
    }

    /// Lets a job sleep, where it may and there is no room for it.
    pub fn rest(&mut self, id: JobId, room: Option<&Room>) {
        if room.is_none_or(|room| self.awake_bytes <= room.budget) {
            return;
        }
        let Some(slot) = self.slot(id).cloned() else { return };
        let before = slot.bytes();
        self.awake_bytes -= before;
        let slot = self.settled(slot, None, room);
        self.awake_bytes += slot.bytes();
        if let Some(place) = self.table.find_mut(hash(id), |slot| slot.id() == id) {
            *place = slot;
        }
    }

    pub fn remove(&mut self, id: JobId) {
        if let Ok(found) = self.table.find_entry(hash(id), |slot| slot.id() == id) {
            let (slot, _) = found.remove();
            self.awake_bytes -= slot.bytes();
        }
    }

    /// Removes ended jobs that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&Job) -> bool) {
        let Self { table, awake_bytes } = self;
        table.retain(|slot| {
            let kept = match slot {
                Slot::Awake(job) => !job.status.is_terminal() || keep(job),
                Slot::Asleep(_) => true,
            };
            if !kept {
                *awake_bytes -= slot.bytes();
            }
            kept
        });
    }

    /// All jobs, those that sleep read one by one.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Job>> {
        self.table.iter().map(Slot::job)
    }

    /// The jobs that are awake: all but some of the queued ones.
    pub fn awake(&self) -> impl Iterator<Item = &Job> {
        self.table.iter().filter_map(|slot| match slot {
            Slot::Awake(job) => Some(&**job),
            Slot::Asleep(_) => None,
        })
    }

    /// Where all jobs stand, and at which version.
    pub fn versions(&self) -> impl Iterator<Item = (JobId, Status, Position)> {
        self.table.iter().map(|slot| match slot {
            Slot::Awake(job) => (job.id, job.status, job.version),
            Slot::Asleep(asleep) => (asleep.id, Status::Queued, asleep.version),
        })
    }

    /// The jobs as they are now, in no order.
    pub fn shared(&self) -> Shared {
        Shared(self.table.iter().cloned().collect())
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    fn slot(&self, id: JobId) -> Option<&Slot> {
        self.table.find(hash(id), |slot| slot.id() == id)
    }

    /// The slot of a job that is to be in memory only if there is room.
    fn settled(&self, slot: Slot, json: Option<&str>, room: Option<&Room>) -> Slot {
        let (Slot::Awake(job), Some(room)) = (&slot, room) else { return slot };
        if job.status != Status::Queued || self.awake_bytes + slot.bytes() <= room.budget {
            return slot;
        }
        let (id, version) = (job.id, job.version);
        let place = match json {
            Some(json) => room.attic.put(json),
            None => room.attic.put(&serde_json::to_string(job).expect("a job is JSON")),
        };
        match place {
            Some(place) => Slot::Asleep(Arc::new(Asleep { id, version, place })),
            None => slot,
        }
    }
}

/// The jobs of one moment, to be written down: a list, which takes half of what a table does.
#[derive(Debug)]
pub(crate) struct Shared(Vec<Slot>);

impl Shared {
    /// Writes each job as a line of JSON, and lets go of it.
    pub fn write(self, to: &mut dyn io::Write) -> io::Result<()> {
        for slot in self.0 {
            match slot {
                Slot::Awake(job) => serde_json::to_writer(&mut *to, &job)?,
                Slot::Asleep(asleep) => to.write_all(asleep.place.read().as_bytes())?,
            }
            to.write_all(b"\n")?;
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |shared: &Self| {
            let mut jobs: Vec<Arc<Job>> = shared.0.iter().map(Slot::job).collect();
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
