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
    ByClass, Id, Job, JobId, JobType, Position, PriorityClass, internal,
    priority_queue::{PriorityQueue, QueueKey, queue_key},
    time::Millis,
};

/// Jobs that are moved among those that may run at once.
const DUE_MAX: usize = 2_000;

/// Which kinds of work may be taken, by class.
pub type OpenJobTypes = ByClass<[bool; JobType::EVERY.len()]>;

/// Whether a project may start a run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may, and takes this number of turns in a row.
    Open(u32),
    /// It may not, and is throttled until something changes or, if that is known, until a time.
    Closed(Option<Millis>),
}

/// The jobs that wait to be dispatched, and those that wait for their time.
#[derive(Debug, Default)]
pub struct ReadyQueue {
    class_queues: ByClass<ClassQueue>,
    /// Jobs of Jobmesh itself (webhook deliveries), which take turns from no class.
    own: ClassQueue,
    timers: BTreeMap<(Millis, JobId), Id>,
    scheduled: HashMap<Id, u64>,
    /// How many of them are internal.
    internal: u64,
    throttled: HashSet<Id>,
    /// Counts the jobs that were taken.
    turn: u64,
}

/// One class: a ring of the projects that have ready jobs and are not throttled. A project in the
/// ring whose jobs have left meanwhile is removed at its turn.
#[derive(Debug, Default)]
struct ClassQueue {
    ring: VecDeque<Id>,
    projects: HashMap<Id, ProjectQueue>,
    jobs: [usize; JobType::EVERY.len()],
}

/// A project's jobs in one class.
#[derive(Debug, Default)]
struct ProjectQueue {
    queues: [PriorityQueue; JobType::EVERY.len()],
    in_ring: bool,
    /// Turns left before the next project's.
    turns: u32,
}

/// The result of asking a class for its next job.
enum Turn {
    Took(JobId),
    /// A project was throttled or had nothing left: ask again.
    Again,
    Nothing,
}

impl ReadyQueue {
    /// Adds a queued job.
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

    /// True if a job is in it.
    pub fn contains(&self, job: &Job) -> bool {
        let is_timed = job.run_at.is_some_and(|at| self.timers.contains_key(&(at, job.id)));
        let class_queue = match job.job_type.is_internal() {
            true => &self.own,
            false => &self.class_queues[job.priority_class],
        };
        is_timed || class_queue.contains(job)
    }

    fn class_queue(&mut self, job: &Job) -> &mut ClassQueue {
        if job.job_type.is_internal() {
            &mut self.own
        } else {
            &mut self.class_queues[job.priority_class]
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
    pub fn depth_of(&self, class: PriorityClass) -> usize {
        self.class_queues[class].jobs.iter().sum()
    }

    /// The first jobs of each priority of a project that wait to be dispatched in `class`, with their ages.
    pub(crate) fn oldest(
        &self,
        class: PriorityClass,
        project: &Id,
    ) -> impl Iterator<Item = (Position, JobId)> {
        let queue = self.class_queues[class].projects.get(project);
        queue.into_iter().flat_map(|queue| queue.queues.iter().flat_map(PriorityQueue::firsts))
    }

    /// Lets a throttled project be asked again.
    pub fn unthrottle(&mut self, project: &Id) {
        if self.throttled.remove(project) {
            for class_queue in self.class_queues.iter_mut().chain([&mut self.own]) {
                class_queue.join_ring(project);
            }
        }
    }

    /// Takes the next job to dispatch from what `open` allows. Each class below the first one with
    /// queued jobs gets `lower_share_percent` of the turns. A class that is `busy` can take nothing
    /// now and keeps its turns: no lower one takes them meanwhile. `gate` decides whether a project
    /// may start a run; a project that may not is throttled.
    pub fn next(
        &mut self,
        lower_share_percent: u8,
        open: OpenJobTypes,
        busy: ByClass<bool>,
        mut gate: impl FnMut(&Id) -> Gate,
    ) -> Option<JobId> {
        let low = PriorityClass::Low;
        while !busy[low] && self.own.may_have(open[low]) {
            match self.own.take(open[low], &mut self.throttled, &mut gate) {
                Turn::Took(id) => return Some(id),
                Turn::Again => {}
                Turn::Nothing => break,
            }
        }
        let mut asked = ByClass::from_fn(|class| self.class_queues[class].may_have(open[class]));
        loop {
            let class = self.class_in_turn(lower_share_percent, asked)?;
            if busy[class] {
                return None;
            }
            match self.class_queues[class].take(open[class], &mut self.throttled, &mut gate) {
                Turn::Took(id) => {
                    self.turn += 1;
                    return Some(id);
                }
                Turn::Again => {}
                Turn::Nothing => asked[class] = false,
            }
        }
    }

    /// The class whose turn it is among those that may have something.
    fn class_in_turn(&self, percent: u8, asked: ByClass<bool>) -> Option<PriorityClass> {
        let mut waiting = PriorityClass::ALL.into_iter().filter(|class| asked[*class]);
        let first = waiting.next()?;
        for (nth, class) in (0..).zip(waiting) {
            if is_shared_turn(self.turn + 1, percent.into(), nth) {
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

/// True if this turn belongs to the `nth` class below the first one with queued jobs. Of 100 turns
/// `percent` do, evenly spread, and those of one class lie between those of the other.
fn is_shared_turn(turn: u64, percent: u64, nth: u64) -> bool {
    if percent == 0 {
        return false;
    }
    let shifted = turn + nth * (50 / percent);
    shifted * percent / 100 > (shifted - 1) * percent / 100
}

impl ClassQueue {
    fn insert(&mut self, job: &Job, throttled: bool) {
        let queue = self.projects.entry(job.project.clone()).or_default();
        if queue.queues[job.job_type as usize].insert(queue_key(job)) {
            self.jobs[job.job_type as usize] += 1;
        }
        if !throttled && !queue.in_ring {
            queue.in_ring = true;
            self.ring.push_back(job.project.clone());
        }
    }

    fn remove(&mut self, job: &Job) {
        let Some(queue) = self.projects.get_mut(&job.project) else { return };
        if queue.queues[job.job_type as usize].remove(&queue_key(job)) {
            self.jobs[job.job_type as usize] -= 1;
        }
        if queue.is_empty() && !queue.in_ring {
            self.projects.remove(&job.project);
        }
    }

    fn contains(&self, job: &Job) -> bool {
        let queue = self.projects.get(&job.project);
        queue.is_some_and(|queue| queue.queues[job.job_type as usize].contains(&queue_key(job)))
    }

    fn join_ring(&mut self, project: &Id) {
        if let Some(queue) = self.projects.get_mut(project)
            && !queue.in_ring
            && !queue.is_empty()
        {
            queue.in_ring = true;
            self.ring.push_back(project.clone());
        }
    }

    fn may_have(&self, open: [bool; JobType::EVERY.len()]) -> bool {
        let open_jobs = self.jobs.iter().zip(open).any(|(jobs, open)| open && *jobs > 0);
        open_jobs && !self.ring.is_empty()
    }

    /// Asks the projects in turn for a job of an open kind.
    fn take(
        &mut self,
        open: [bool; JobType::EVERY.len()],
        throttled: &mut HashSet<Id>,
        gate: &mut impl FnMut(&Id) -> Gate,
    ) -> Turn {
        for _ in 0..self.ring.len() {
            let Some(project) = self.ring.pop_front() else { return Turn::Nothing };
            let Some(queue) = self.projects.get_mut(&project) else { continue };
            if queue.is_empty() || throttled.contains(&project) {
                queue.leave_ring();
                if queue.is_empty() {
                    self.projects.remove(&project);
                }
                return Turn::Again;
            }
            let Some((job_type, next)) = queue.first(open) else {
                self.ring.push_back(project);
                continue;
            };
            let Gate::Open(weight) = gate(&project) else {
                queue.leave_ring();
                throttled.insert(project);
                return Turn::Again;
            };
            queue.queues[job_type].remove(&next);
            self.jobs[job_type] -= 1;
            if queue.turns == 0 {
                queue.turns = weight.max(1);
            }
            queue.turns -= 1;
            if queue.is_empty() {
                self.projects.remove(&project);
            } else if queue.turns > 0 {
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
    fn first(&self, open: [bool; JobType::EVERY.len()]) -> Option<(usize, QueueKey)> {
        let firsts = self.queues.iter().enumerate().filter(|(job_type, _)| open[*job_type]);
        firsts
            .filter_map(|(job_type, priority_queue)| Some((job_type, priority_queue.first()?)))
            .min_by_key(|(_, p)| *p)
    }
}
