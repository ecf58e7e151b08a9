//! The fold: events in, state out. The same for the leader, a follower and a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Answer, Counts, Digest, Gate, Id, Job, JobId, Open, Position, Ready, Settings, Status,
    event::{Batch, Became, Ended, Enqueued, Event, LateRun, Requeued, Revived},
    minute::Minute,
    recent::Recent,
    schedule::Timed,
    time::Millis,
};

/// What one project has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Project {
    pub counts: Counts,
    /// Failed jobs, and until when they are kept: what `retryAll` reaches.
    pub failed: HashMap<JobId, Millis>,
    #[serde(default)]
    pub settings: Settings,
    #[serde(default)]
    pub schedules: BTreeMap<Id, Timed>,
    /// Runs that started in the last minute.
    #[serde(default)]
    pub starts: Minute,
    /// Tokens that were counted in the last minute.
    #[serde(default)]
    pub tokens: Minute,
    /// Live jobs by batch.
    #[serde(skip)]
    pub live: HashMap<Id, Vec<JobId>>,
}

/// Everything that the events say, and no more: what a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The last message of COMMANDS that is folded.
    pub through: u64,
    /// The last event.
    pub position: Position,
    /// How many leaders there were.
    pub term: u64,
    /// The time of the last event.
    pub at: Millis,
    /// Live jobs, and ended ones that the bucket does not have yet.
    pub jobs: HashMap<JobId, Job>,
    pub projects: HashMap<Id, Project>,
    pub total: Counts,
    pub recent: Recent,
    /// Answers that the bucket does not have yet.
    pub answers: HashMap<Digest, (Position, Answer)>,
    /// How far the message of COMMANDS is folded that comes next.
    #[serde(default)]
    pub partial: Option<Partial>,
    /// The first message of each hour: where to cut EVENTS by age.
    pub hours: VecDeque<(Millis, u64)>,
}

/// How far a message of COMMANDS is folded, where its events needed more than one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// The item that is to be gone on with; those before it are done.
    pub item: u32,
    /// Jobs that this item cancelled or queued again so far.
    pub jobs: u64,
    /// Batches they belonged to.
    pub batches: u64,
}

/// The state of all jobs, and what follows from it.
#[derive(Debug, Default)]
pub struct State {
    pub(crate) known: Known,
    ready: Ready,
    touched: Touched,
    /// When which schedule of which project fires next.
    calendar: BTreeSet<(Millis, Id, Id)>,
    retention_ms: i64,
}

/// Keys of the bucket that are behind, each once, in the order of their first change.
#[derive(Debug, Default)]
struct Touched {
    order: VecDeque<(Position, Queued)>,
    members: HashSet<Queued>,
}

/// What a project used of its limits in the last 60 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Jobs that run now.
    pub running: u64,
    /// Runs that started.
    pub starts: u64,
    /// Tokens that were counted.
    pub tokens: u64,
}

/// Something that the bucket is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queued {
    /// A job.
    Job(JobId),
    /// An answer under an idempotency key.
    Answer(Digest),
}

impl Touched {
    fn push(&mut self, position: Position, what: Queued) {
        if self.members.insert(what) {
            self.order.push_back((position, what));
        }
    }
}

/// A snapshot that cannot be taken back in.
#[derive(Debug, thiserror::Error)]
#[error("a snapshot of the state could not be read")]
pub struct Restored(#[from] serde_json::Error);

impl State {
    /// An empty state that keeps failed jobs in reach of a retry for `retention_ms`.
    pub fn new(retention_ms: i64) -> Self {
        Self { retention_ms, ..Self::default() }
    }

    /// The state as JSON, to be restored later.
    ///
    /// # Errors
    /// Where it cannot be written, which no valid state causes.
    pub fn snapshot(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&self.known)
    }

    /// The state of a snapshot, to be followed by the events after it and by
    /// [`settle`](Self::settle).
    ///
    /// # Errors
    /// Where the bytes are no snapshot.
    pub fn restore(bytes: &[u8], retention_ms: i64) -> Result<Self, Restored> {
        let mut state =
            Self { known: serde_json::from_slice(bytes)?, retention_ms, ..Self::default() };
        let Self { known, ready, calendar, .. } = &mut state;
        for (project, known) in &known.projects {
            for (name, timed) in &known.schedules {
                calendar.extend(timed.next_at.map(|at| (at, project.clone(), name.clone())));
            }
        }
        for job in known.jobs.values() {
            if !job.status.is_terminal() {
                let project = known.projects.entry(job.project.clone()).or_default();
                project.live.entry(job.batch.clone()).or_default().push(job.id);
            }
            if job.status == Status::Queued {
                ready.insert(job, known.at);
            }
        }
        Ok(state)
    }

    /// Ends a start: `covered` is the last event that the bucket has. What changed after it is to
    /// be written again, and ended jobs that it has are let go.
    pub fn settle(&mut self, covered: Position) {
        let known = &mut self.known;
        known.jobs.retain(|_, job| !job.status.is_terminal() || job.version > covered);
        known.answers.retain(|_, (position, _)| *position > covered);
        let jobs = known.jobs.values().map(|job| (job.version, Queued::Job(job.id)));
        let answers = known.answers.iter().map(|(key, (at, _))| (*at, Queued::Answer(*key)));
        let mut behind: Vec<_> = jobs.chain(answers).filter(|(at, _)| *at > covered).collect();
        behind.sort_unstable_by_key(|(at, _)| *at);
        self.touched = Touched::default();
        for (at, what) in behind {
            self.touched.push(at, what);
        }
    }

    /// Takes in message `sequence` of EVENTS, which reaches up to command `through`.
    pub fn apply_batch(&mut self, sequence: u64, through: u64, batch: &Batch) {
        // First: what the events say of a message that is folded in part is of the next one.
        self.folded(through);
        for (position, event) in batch.at_sequence(sequence) {
            self.apply(batch.at, position, event);
        }
        for id in &batch.commands {
            self.note(batch.at, *id);
        }
    }

    /// How far the next message of COMMANDS is folded.
    pub fn partial(&self) -> Option<Partial> {
        self.known.partial
    }

    /// Notes that the item of a message of COMMANDS is folded which was gone on with.
    pub fn item_folded(&mut self) {
        self.known.partial = None;
    }

    /// Notes that a message of COMMANDS was folded.
    pub fn note(&mut self, at: Millis, message: Uuid) {
        self.known.recent.note(at, message);
    }

    /// Notes that COMMANDS is folded up to and with `through`.
    pub fn folded(&mut self, through: u64) {
        if through > self.known.through {
            self.known.through = through;
            self.known.partial = None;
        }
    }

    /// Takes in one event. An event at or before the last one is known already and changes nothing.
    pub fn apply(&mut self, at: Millis, position: Position, event: &Event) {
        if position <= self.known.position {
            return;
        }
        self.known.position = position;
        self.known.at = self.known.at.max(at);
        self.mark_hour(at, position.sequence);
        match event {
            Event::Led { term, .. } => self.known.term = *term,
            Event::Enqueued(new) => self.enqueued(at, position, new),
            Event::Started { job, of, worker, at: began, .. } => {
                self.known.projects.entry(of.project.clone()).or_default().starts.add(at, 1);
                self.change(*job, position, |job| {
                    job.status = Status::Processing;
                    job.attempts += 1;
                    job.take_backs = 0;
                    job.run_at = None;
                    job.started_at = Some(*began);
                    job.worker = Some(worker.clone());
                    job.step(at);
                });
            }
            Event::Ended(ended) => self.ended(at, position, ended),
            Event::Revived(revived) => self.revived(position, revived),
            Event::Refused(refused) => {
                if let Some(late) = &refused.ended {
                    self.count_tokens(at, &late.about.project, &late.spent);
                    self.late(position, late);
                }
            }
            Event::Answered { key, answer } => {
                self.known.answers.insert(*key, (position, (**answer).clone()));
                self.touched.push(position, Queued::Answer(*key));
            }
            Event::ProjectSet { project, settings } => {
                let project = self.known.projects.entry(project.clone()).or_default();
                project.settings.clone_from(settings);
            }
            Event::ScheduleSet { project, name, schedule } => {
                self.schedule(project, name, Some((**schedule).clone()));
            }
            Event::ScheduleRemoved { project, name } => self.schedule(project, name, None),
            Event::Fired { project, name, at, job, next } => {
                let known = self.known.projects.get(project);
                let old = known.and_then(|known| known.schedules.get(name)).cloned();
                let timed = old.map(|old| Timed {
                    next_at: *next,
                    last_at: Some(*at),
                    last_job_id: job.or(old.last_job_id),
                    ..old
                });
                self.schedule(project, name, timed);
            }
            Event::Partial { item, jobs, batches } => {
                self.known.partial = Some(Partial { item: *item, jobs: *jobs, batches: *batches });
            }
        }
    }

    /// Moves jobs whose time has come among those that may run.
    pub fn wake(&mut self, now: Millis) {
        for id in self.ready.due(now) {
            if let Some(job) = self.known.jobs.get(&id) {
                self.ready.insert(job, now);
            }
        }
    }

    /// Who is next to be dispatched.
    pub fn ready(&mut self) -> &mut Ready {
        &mut self.ready
    }

    /// Takes the next job to be dispatched; `gate` says whether a project may start a run.
    pub(crate) fn next_ready(
        &mut self,
        lower_share: f64,
        open: Open,
        mut gate: impl FnMut(&Id, &Project) -> Gate,
    ) -> Option<JobId> {
        let Self { known, ready, .. } = self;
        ready.next(lower_share, open, |id| {
            known.projects.get(id).map_or(Gate::Open(1), |project| gate(id, project))
        })
    }

    /// Puts a job that was taken for dispatch back among those that may run.
    pub fn put_back(&mut self, id: JobId) {
        if let Some(job) = self.known.jobs.get(&id).filter(|job| job.status == Status::Queued) {
            self.ready.insert(job, self.known.at);
        }
    }

    /// A job in memory: any live one, and ended ones that the bucket does not have yet.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.known.jobs.get(&id)
    }

    /// The jobs in memory.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.known.jobs.values()
    }

    /// The counts of a project, or of all.
    pub fn counts(&self, project: Option<&str>) -> Counts {
        match project {
            None => self.known.total,
            Some(id) => self.known.projects.get(id).map(|p| p.counts).unwrap_or_default(),
        }
    }

    /// How many queued jobs of a project, or of all, wait for their time.
    pub fn scheduled(&self, project: Option<&str>) -> u64 {
        self.ready.scheduled(project)
    }

    /// The settings of a project.
    pub fn settings(&self, project: &str) -> Settings {
        self.known.projects.get(project).map(|p| p.settings.clone()).unwrap_or_default()
    }

    /// What a project used of its limits in the 60 s before `now`.
    pub fn usage(&self, project: &str, now: Millis) -> Usage {
        let Some(project) = self.known.projects.get(project) else { return Usage::default() };
        Usage {
            running: project.counts.processing.iter().sum(),
            starts: project.starts.sum(now),
            tokens: project.tokens.sum(now),
        }
    }

    /// The schedules of a project, by name.
    pub fn schedules(&self, project: &str) -> impl Iterator<Item = (&Id, &Timed)> {
        self.known.projects.get(project).into_iter().flat_map(|project| &project.schedules)
    }

    /// When the next schedule fires.
    pub fn next_fire(&self) -> Option<Millis> {
        self.calendar.first().map(|(at, ..)| *at)
    }

    /// A schedule whose time has come: project and name.
    pub fn due_schedule(&self, now: Millis) -> Option<(Id, Id)> {
        let (_, project, name) = self.calendar.first().filter(|(at, ..)| *at <= now)?;
        Some((project.clone(), name.clone()))
    }

    /// The attempts that a job may use: its own number where its request named one, else the
    /// project's of now, else the configuration's of when it was enqueued.
    pub fn max_attempts(&self, job: &Job) -> u32 {
        let project = self.known.projects.get(&job.project);
        match project.and_then(|project| project.settings.max_attempts) {
            Some(attempts) if !job.own_attempts => attempts,
            _ => job.max_attempts,
        }
    }

    /// How long an ended job of a project is kept, in ms.
    pub fn retention_ms(&self, project: &str) -> i64 {
        let project = self.known.projects.get(project);
        let own = project.and_then(|project| project.settings.retention);
        own.map_or(self.retention_ms, |seconds| i64::from(seconds) * 1_000)
    }

    /// The last message of COMMANDS that is folded.
    pub fn through(&self) -> u64 {
        self.known.through
    }

    /// The last event.
    pub fn position(&self) -> Position {
        self.known.position
    }

    /// How many leaders there were.
    pub fn term(&self) -> u64 {
        self.known.term
    }

    /// The time of the last event: no decision may be older.
    pub fn at(&self) -> Millis {
        self.known.at
    }

    /// Whether this message of COMMANDS was folded lately.
    pub fn is_recent(&self, message: Uuid) -> bool {
        self.known.recent.contains(message)
    }

    /// The first message of EVENTS that is younger than `oldest`; what is below may be cut.
    pub fn first_after(&self, oldest: Millis) -> u64 {
        let hour = self.known.hours.iter().rev().find(|(at, _)| *at <= oldest);
        hour.map_or(0, |(_, sequence)| *sequence)
    }

    /// Up to `max` things that the bucket is behind with, oldest change first.
    pub fn behind(&mut self, max: usize) -> Vec<Queued> {
        let taken = self.touched.order.len().min(max);
        let mut behind = Vec::with_capacity(taken);
        for (_, what) in self.touched.order.drain(..taken) {
            self.touched.members.remove(&what);
            behind.push(what);
        }
        behind
    }

    /// Whether the bucket is behind with anything.
    pub fn is_behind(&self) -> bool {
        !self.touched.order.is_empty()
    }

    /// Up to which event the bucket is whole once all that [`behind`](Self::behind) gave out
    /// so far is written.
    pub fn covered(&self) -> Position {
        match self.touched.order.front() {
            None => self.known.position,
            Some((first, _)) if first.index > 0 => Position::new(first.sequence, first.index - 1),
            Some((first, _)) => Position::new(first.sequence - 1, u32::MAX),
        }
    }

    /// For one that does not write the bucket: lets go of what the bucket has, which is whole up
    /// to `covered`.
    pub fn forget(&mut self, covered: Position) {
        while self.touched.order.front().is_some_and(|(at, _)| *at <= covered) {
            let Some((_, what)) = self.touched.order.pop_front() else { return };
            self.touched.members.remove(&what);
            let version = match what {
                Queued::Job(id) => self.known.jobs.get(&id).map(|job| job.version),
                Queued::Answer(key) => self.known.answers.get(&key).map(|(at, _)| *at),
            };
            match version {
                Some(version) if version > covered => self.touched.push(version, what),
                Some(version) => self.stored(what, version),
                None => {}
            }
        }
    }

    /// The answer kept under an idempotency key, while the bucket does not have it.
    pub fn answer(&self, key: Digest) -> Option<&Answer> {
        self.known.answers.get(&key).map(|(_, answer)| answer)
    }

    /// Lets go of what the bucket has: an ended job at this version, an answer.
    pub fn stored(&mut self, what: Queued, version: Position) {
        match what {
            Queued::Answer(key) => {
                self.known.answers.remove(&key);
            }
            Queued::Job(id) => {
                let done = self.known.jobs.get(&id);
                if done.is_some_and(|job| job.status.is_terminal() && job.version == version) {
                    self.known.jobs.remove(&id);
                }
            }
        }
    }

    fn enqueued(&mut self, at: Millis, position: Position, new: &Enqueued) {
        let mut job = Job {
            id: new.job,
            project: new.project.clone(),
            batch: new.batch.clone(),
            kind: new.kind,
            priority: new.priority,
            class: new.class,
            data: new.data.clone(),
            status: Status::Queued,
            run: 1,
            attempts: 0,
            max_attempts: new.max_attempts,
            own_attempts: new.own_attempts,
            retry: new.retry.map(Box::new),
            take_backs: 0,
            closed: false,
            created_at: at,
            queued_at: at,
            run_at: new.run_at,
            started_at: None,
            completed_at: None,
            error: None,
            superseded_by: None,
            result: None,
            spent: crate::Spent::default(),
            worker: None,
            timeline: Vec::new(),
            order: position,
            version: position,
        };
        job.step(at);
        self.enter(position, job);
    }

    fn ended(&mut self, at: Millis, position: Position, ended: &Ended) {
        self.count_tokens(at, &ended.about.project, &ended.spent);
        if ended.doubtful {
            let project = self.known.projects.entry(ended.about.project.clone()).or_default();
            project.starts.add(at, 1);
        }
        let retention_ms = self.retention_ms(&ended.about.project);
        self.change(ended.job, position, |job| {
            job.spent.add(&ended.spent);
            job.closed = ended.finished_at.is_some();
            job.error.clone_from(&ended.error);
            job.status = ended.to.status();
            match &ended.to {
                Became::Queued(again) => requeue(job, at, again),
                Became::Completed { result } => job.result.clone_from(result),
                Became::Failed => {}
                Became::Canceled { superseded_by } => job.superseded_by = *superseded_by,
            }
            if job.status.is_terminal() {
                job.run_at = None;
                job.completed_at = Some(at);
            }
            job.step(at);
        });
        if ended.to == Became::Failed {
            let project = self.known.projects.entry(ended.about.project.clone()).or_default();
            project.failed.insert(ended.job, at + retention_ms);
        }
    }

    fn revived(&mut self, position: Position, revived: &Revived) {
        let mut job = revived.job.clone();
        job.version = position;
        self.known.jobs.remove(&job.id);
        let project = self.known.projects.entry(job.project.clone()).or_default();
        project.failed.remove(&job.id);
        project.counts.leave(revived.was, job.class);
        self.known.total.leave(revived.was, job.class);
        self.enter(position, job);
    }

    fn schedule(&mut self, project: &Id, name: &Id, timed: Option<Timed>) {
        let known = self.known.projects.entry(project.clone()).or_default();
        let next = timed.as_ref().and_then(|timed| timed.next_at);
        let old = match timed {
            Some(timed) => known.schedules.insert(name.clone(), timed),
            None => known.schedules.remove(name),
        };
        let entry = |at: Millis| (at, project.clone(), name.clone());
        if let Some(at) = old.and_then(|old| old.next_at) {
            self.calendar.remove(&entry(at));
        }
        self.calendar.extend(next.map(entry));
    }

    fn count_tokens(&mut self, at: Millis, project: &Id, spent: &crate::Spent) {
        let tokens = spent.input_tokens.saturating_add(spent.output_tokens);
        if tokens > 0 {
            self.known.projects.entry(project.clone()).or_default().tokens.add(at, tokens);
        }
    }

    /// Notes that the costs of a run which ended late are counted, so that they are not again.
    fn late(&mut self, position: Position, late: &LateRun) {
        if let Some(job) = &late.forgotten {
            self.known.jobs.entry(late.job).or_insert_with(|| (**job).clone());
        }
        if let Some(job) = self.known.jobs.get_mut(&late.job) {
            job.spent.add(&late.spent);
            job.closed |= job.run == late.run;
            job.version = position;
            self.touched.push(position, Queued::Job(late.job));
        }
    }

    /// Takes in a job that is queued.
    fn enter(&mut self, position: Position, job: Job) {
        let project = self.known.projects.entry(job.project.clone()).or_default();
        project.counts.enter(job.status, job.class);
        self.known.total.enter(job.status, job.class);
        project.live.entry(job.batch.clone()).or_default().push(job.id);
        self.ready.insert(&job, self.known.at);
        self.touched.push(position, Queued::Job(job.id));
        self.known.jobs.insert(job.id, job);
    }

    /// Changes a live job and keeps counts, queue and live batches in step with it.
    fn change(&mut self, id: JobId, position: Position, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.known.jobs.get_mut(&id) else { return };
        let project = self.known.projects.entry(job.project.clone()).or_default();
        project.counts.leave(job.status, job.class);
        self.known.total.leave(job.status, job.class);
        if job.status == Status::Queued {
            self.ready.remove(job);
        }
        change(job);
        job.version = position;
        project.counts.enter(job.status, job.class);
        self.known.total.enter(job.status, job.class);
        if job.status == Status::Queued {
            self.ready.insert(job, self.known.at);
        }
        if job.status.is_terminal() {
            remove_live(&mut project.live, job);
        }
        self.touched.push(position, Queued::Job(id));
    }

    fn mark_hour(&mut self, at: Millis, sequence: u64) {
        let hour = at.div_euclid(3_600_000);
        if self.known.hours.back().is_none_or(|(last, _)| last.div_euclid(3_600_000) < hour) {
            self.known.hours.push_back((at, sequence));
            for project in self.known.projects.values_mut() {
                project.failed.retain(|_, until| *until > at);
            }
        }
        // A year of hours: more than any retention of events that is worth its disk.
        if self.known.hours.len() > 24 * 366 {
            self.known.hours.pop_front();
        }
    }
}

fn requeue(job: &mut Job, at: Millis, again: &Requeued) {
    job.run = again.run;
    job.attempts = again.attempts;
    job.take_backs = again.take_backs;
    job.run_at = again.run_at;
    job.queued_at = at;
    job.started_at = None;
    job.worker = None;
    job.closed = false;
}

fn remove_live(live: &mut HashMap<Id, Vec<JobId>>, job: &Job) {
    if let Some(jobs) = live.get_mut(&job.batch) {
        jobs.retain(|id| *id != job.id);
        if jobs.is_empty() {
            live.remove(&job.batch);
        }
    }
}
