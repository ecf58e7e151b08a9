//! Who is next: queued jobs in the order in which they may run.
//!
//! By class; in a class round robin over projects, so that a project with a million jobs delays
//! another's single one by one turn; in a project by priority number, then age. A class below
//! the first one that waits keeps a share of the turns, so that it never starves.
//!
//! All of it is derived from the jobs: a restart builds it anew.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::{Class, Id, Job, JobId, Position, time::Millis};

/// A job's place among those of its project: number, age, id.
type Place = (u16, Position, JobId);

/// The jobs that wait to be dispatched, and those that wait for their time.
#[derive(Debug, Default)]
pub struct Ready {
    lanes: [Lane; 3],
    timers: BTreeSet<(Millis, JobId)>,
    turn: f64,
}

/// One class: a ring of the projects that have something ready.
#[derive(Debug, Default)]
struct Lane {
    ring: VecDeque<Id>,
    projects: HashMap<Id, BTreeSet<Place>>,
    jobs: usize,
}

impl Ready {
    /// Takes in a queued job.
    pub fn insert(&mut self, job: &Job, now: Millis) {
        match job.run_at {
            Some(at) if at > now => {
                self.timers.insert((at, job.id));
            }
            _ => self.lanes[job.class as usize].insert(job),
        }
    }

    /// Takes out a job that is queued no more.
    pub fn remove(&mut self, job: &Job) {
        if let Some(at) = job.run_at {
            self.timers.remove(&(at, job.id));
        }
        self.lanes[job.class as usize].remove(job);
    }

    /// The jobs whose time has come; the caller inserts them again.
    pub fn due(&mut self, now: Millis) -> Vec<JobId> {
        let mut due = Vec::new();
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            due.push(id);
        }
        due
    }

    /// When the next waiting job's time comes.
    pub fn next_due(&self) -> Option<Millis> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// How many jobs wait for their time.
    pub fn scheduled(&self) -> impl Iterator<Item = JobId> + '_ {
        self.timers.iter().map(|(_, id)| *id)
    }

    /// How many jobs may be dispatched now, by class.
    pub fn depth(&self) -> [usize; 3] {
        [self.lanes[0].jobs, self.lanes[1].jobs, self.lanes[2].jobs]
    }

    /// Takes the next job to dispatch from the classes that `open` allows. `lower_share` of the
    /// turns (0 to 1) go to each class below the first one that waits.
    pub fn next(&mut self, lower_share: f64, open: [bool; 3]) -> Option<JobId> {
        let mut waiting = (0..3)
            .filter(|class| open[*class] && self.lanes[*class].jobs > 0)
            .collect::<VecDeque<_>>();
        let first = waiting.pop_front()?;
        if waiting.is_empty() {
            return self.lanes[first].next();
        }
        self.turn = (self.turn + 1.0) % 1_000.0;
        for (nth, class) in waiting.iter().enumerate() {
            if is_shared_turn(self.turn, lower_share, nth) {
                return self.lanes[*class].next();
            }
        }
        self.lanes[first].next()
    }
}

/// Whether this turn belongs to the `nth` class below the first one that waits: every
/// 1/share-th turn does, each class's shifted by some turns against the other's.
fn is_shared_turn(turn: f64, share: f64, nth: usize) -> bool {
    if share <= 0.0 {
        return false;
    }
    let shifted = turn + nth as f64 * (0.5 / share).floor();
    (shifted * share).floor() > ((shifted - 1.0) * share).floor()
}

impl Lane {
    fn insert(&mut self, job: &Job) {
        let places = self.projects.entry(job.project.clone()).or_default();
        if places.is_empty() {
            self.ring.push_back(job.project.clone());
        }
        if places.insert(place(job)) {
            self.jobs += 1;
        }
    }

    fn remove(&mut self, job: &Job) {
        let Some(places) = self.projects.get_mut(&job.project) else { return };
        if places.remove(&place(job)) {
            self.jobs -= 1;
        }
        if places.is_empty() {
            self.projects.remove(&job.project);
            self.ring.retain(|project| *project != job.project);
        }
    }

    fn next(&mut self) -> Option<JobId> {
        let project = self.ring.pop_front()?;
        let places = self.projects.get_mut(&project)?;
        let next = places.pop_first();
        if places.is_empty() {
            self.projects.remove(&project);
        } else {
            self.ring.push_back(project);
        }
        self.jobs -= usize::from(next.is_some());
        next.map(|(_, _, id)| id)
    }
}

fn place(job: &Job) -> Place {
    (job.priority, job.order, job.id)
}

/// The name of each class beside its depth, for those who report it.
impl Ready {
    /// How many jobs may be dispatched now in `class`.
    pub fn depth_of(&self, class: Class) -> usize {
        self.lanes[class as usize].jobs
    }
}
