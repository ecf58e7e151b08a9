//! Queued jobs in the order in which they may run.
//!
//! By class; in a class weighted round robin over projects, so that a project with a million
//! jobs delays another's single one by one turn; in a project by priority number, then age. A
//! class below the first one that waits keeps a share of the turns, so that it never starves.
//!
//! A project that may start nothing is throttled and costs nothing meanwhile. The queue is derived
//! from the jobs: a restart rebuilds it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::{
    Class, Id, Job, JobId, Kind, internal,
    priority_queue::{PriorityQueue, QueueKey, queue_key},
    time::Millis,
};

/// Jobs that are moved among those that may run at once.
const DUE_MAX: usize = 2_000;

/// Which kinds of work may be taken, by class.
pub type OpenJobTypes = [[bool; Kind::EVERY.len()]; Class::ALL.len()];

/// Whether a project may start a run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may, and has so many turns where others have one.
    Open(u32),
    /// It may not: it is parked.
    Closed,
}

/// The jobs that wait to be dispatched, and those that wait for their time.
#[derive(Debug, Default)]
pub struct ReadyQueue {
    class_queues: [ClassQueue; Class::ALL.len()],
    /// The mesh's own work, which takes turns from no class.
    own: ClassQueue,
    timers: BTreeMap<(Millis, JobId), Id>,
    scheduled: HashMap<Id, u64>,
    /// How many of them are the mesh's own.
    internal: u64,
    throttled: HashSet<Id>,
    turn: f64,
}

/// One class: a ring of the projects that have something ready and are not parked. What a
/// project in the ring lost since is found out when its turn comes.
#[derive(Debug, Default)]
struct ClassQueue {
    ring: VecDeque<Id>,
    projects: HashMap<Id, ProjectQueue>,
    jobs: [usize; Kind::EVERY.len()],
}

/// A project's jobs in one class.
#[derive(Debug, Default)]
struct ProjectQueue {
    queues: [PriorityQueue; Kind::EVERY.len()],
    in_ring: bool,
    /// Turns left before the next project's.
    turns: u32,
}

/// What came of asking a lane.
enum Turn {
    Took(JobId),
    /// A project was parked or had nothing left: ask again.
    Again,
    Nothing,
}

impl ReadyQueue {
    /// Takes in a queued job.
    pub fn insert(&mut self, job: &Job, now: Millis) {
        match job.run_at {
            Some(at) if at > now => {
                if self.timers.insert((at, job.id), job.project.clone()).is_none() {
                    self.internal += u64::from(internal::is_internal(&job.project));
                    *self.scheduled.entry(job.project.clone()).or_default() += 1;
                }
            }
            _ => {
                let throttled = self.throttled.contains(&job.project);
                self.class_queue(job).insert(job, throttled);
            }
        }
    }

    /// Removes a job.
    pub fn remove(&mut self, job: &Job) {
        if let Some(at) = job.run_at
            && let Some(project) = self.timers.remove(&(at, job.id))
        {
            self.unschedule(&project);
        }
        self.class_queue(job).remove(job);
    }

    fn class_queue(&mut self, job: &Job) -> &mut ClassQueue {
        if job.kind.is_internal() {
            &mut self.own
        } else {
            &mut self.class_queues[job.class as usize]
        }
    }

    /// Jobs whose time has come, a bounded number at a time; the caller inserts them again.
    pub fn due(&mut self, now: Millis) -> Vec<JobId> {
        let mut due = Vec::new();
        while let Some(first) = self.timers.first_entry() {
            if first.key().0 > now || due.len() >= DUE_MAX {
                break;
            }
            let ((_, id), project) = first.remove_entry();
            self.unschedule(&project);
            due.push(id);
        }
        due
    }

    /// When the next waiting job's time comes.
    pub fn next_due(&self) -> Option<Millis> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// How many jobs of a project, or of all, wait for their time.
    pub fn scheduled(&self, project: Option<&str>) -> u64 {
        match project {
            None => self.timers.len() as u64 - self.internal,
            Some(project) => self.scheduled.get(project).copied().unwrap_or(0),
        }
    }

    /// How many jobs wait to be dispatched in `class`.
    pub fn depth_of(&self, class: Class) -> usize {
        self.class_queues[class as usize].jobs.iter().sum()
    }

    /// Lets a parked project be asked again.
    pub fn unthrottle(&mut self, project: &Id) {
        if self.throttled.remove(project) {
            for class_queue in self.class_queues.iter_mut().chain([&mut self.own]) {
                class_queue.join_ring(project);
            }
        }
    }

    /// Takes the next job to dispatch from what `open` allows. `lower_share` of the turns (from 0 to
    /// 1.0) go to each class below the first one that waits. A class that is `busy` can take
    /// nothing now, and keeps its turns: no lower one takes them meanwhile. `gate` says of a
    /// project whether it may start a run; a project that may not is parked.
    pub fn next(
        &mut self,
        lower_share: f64,
        open: OpenJobTypes,
        busy: [bool; Class::ALL.len()],
        mut gate: impl FnMut(&Id) -> Gate,
    ) -> Option<JobId> {
        let low = Class::Low as usize;
        while !busy[low] && self.own.may_have(open[low]) {
            match self.own.take(open[low], &mut self.throttled, &mut gate) {
                Turn::Took(id) => return Some(id),
                Turn::Again => {}
                Turn::Nothing => break,
            }
        }
        let mut asked =
            [0, 1, 2].map(|class: usize| self.class_queues[class].may_have(open[class]));
        loop {
            let class = self.class_in_turn(lower_share, asked)?;
            if busy[class] {
                return None;
            }
            match self.class_queues[class].take(open[class], &mut self.throttled, &mut gate) {
                Turn::Took(id) => {
                    self.turn = (self.turn + 1.0) % 1_000.0;
                    return Some(id);
                }
                Turn::Again => {}
                Turn::Nothing => asked[class] = false,
            }
        }
    }

    /// The class whose turn it is among those that may have something.
    fn class_in_turn(&self, lower_share: f64, asked: [bool; 3]) -> Option<usize> {
        let mut waiting = (0..3).filter(|class| asked[*class]);
        let first = waiting.next()?;
        for (nth, class) in waiting.enumerate() {
            if is_shared_turn(self.turn + 1.0, lower_share, nth) {
                return Some(class);
            }
        }
        Some(first)
    }

    fn unschedule(&mut self, project: &Id) {
        self.internal -= u64::from(internal::is_internal(project));
        if let Some(jobs) = self.scheduled.get_mut(project) {
            *jobs -= 1;
            if *jobs == 0 {
                self.scheduled.remove(project);
            }
        }
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

impl ClassQueue {
    fn insert(&mut self, job: &Job, throttled: bool) {
        let waiting = self.projects.entry(job.project.clone()).or_default();
        if waiting.queues[job.kind as usize].insert(queue_key(job)) {
            self.jobs[job.kind as usize] += 1;
        }
        if !throttled && !waiting.in_ring {
            waiting.in_ring = true;
            self.ring.push_back(job.project.clone());
        }
    }

    fn remove(&mut self, job: &Job) {
        let Some(waiting) = self.projects.get_mut(&job.project) else { return };
        if waiting.queues[job.kind as usize].remove(&queue_key(job)) {
            self.jobs[job.kind as usize] -= 1;
        }
        if waiting.is_empty() && !waiting.in_ring {
            self.projects.remove(&job.project);
        }
    }

    fn join_ring(&mut self, project: &Id) {
        if let Some(waiting) = self.projects.get_mut(project)
            && !waiting.in_ring
            && !waiting.is_empty()
        {
            waiting.in_ring = true;
            self.ring.push_back(project.clone());
        }
    }

    fn may_have(&self, open: [bool; Kind::EVERY.len()]) -> bool {
        let open_jobs = self.jobs.iter().zip(open).any(|(jobs, open)| open && *jobs > 0);
        open_jobs && !self.ring.is_empty()
    }

    /// Asks the projects in turn for a job of an open kind.
    fn take(
        &mut self,
        open: [bool; Kind::EVERY.len()],
        throttled: &mut HashSet<Id>,
        gate: &mut impl FnMut(&Id) -> Gate,
    ) -> Turn {
        for _ in 0..self.ring.len() {
            let Some(project) = self.ring.pop_front() else { return Turn::Nothing };
            let Some(waiting) = self.projects.get_mut(&project) else { continue };
            if waiting.is_empty() || throttled.contains(&project) {
                waiting.leave_ring();
                if waiting.is_empty() {
                    self.projects.remove(&project);
                }
                return Turn::Again;
            }
            let Some((kind, next)) = waiting.first(open) else {
                self.ring.push_back(project);
                continue;
            };
            let Gate::Open(weight) = gate(&project) else {
                waiting.leave_ring();
                throttled.insert(project);
                return Turn::Again;
            };
            waiting.queues[kind].remove(&next);
            self.jobs[kind] -= 1;
            if waiting.turns == 0 {
                waiting.turns = weight.max(1);
            }
            waiting.turns -= 1;
            if waiting.is_empty() {
                self.projects.remove(&project);
            } else if waiting.turns > 0 {
                self.ring.push_front(project);
            } else {
                self.ring.push_back(project);
            }
            return Turn::Took(next.2);
        }
        Turn::Nothing
    }
}

impl ProjectQueue {
    fn is_empty(&self) -> bool {
        self.queues.iter().all(PriorityQueue::is_empty)
    }

    fn leave_ring(&mut self) {
        self.in_ring = false;
        self.turns = 0;
    }

    /// The first job of an open kind, with its kind.
    fn first(&self, open: [bool; Kind::EVERY.len()]) -> Option<(usize, QueueKey)> {
        let firsts = self.queues.iter().enumerate().filter(|(kind, _)| open[*kind]);
        firsts
            .filter_map(|(kind, priority_queue)| Some((kind, priority_queue.first()?)))
            .min_by_key(|(_, p)| *p)
    }
}
