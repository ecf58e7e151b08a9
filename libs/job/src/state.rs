//! The state: made, written down, restored, and read.

use std::{
    collections::BTreeSet,
    io::{self, BufRead},
    sync::Arc,
};

use uuid::Uuid;

use crate::{
    Counts, Digest, Id, IdempotencyRecord, Job, JobId, JobType, Partial, Position, ProjectUsage,
    ReadyQueue, Settings, Snapshot, SpillStore, Status, dirty_keys::DirtyKeys, expiries::Expiries,
    internal, operation::Operation, schedule::ScheduleState, snapshot::SnapshotState,
    spill::SpillPolicy, time::Millis,
};

/// The state of all jobs, and what follows from it.
#[derive(Debug, Default)]
pub struct State {
    pub(crate) persisted: SnapshotState,
    pub(crate) ready: ReadyQueue,
    pub(crate) dirty: DirtyKeys,
    /// When which schedule of which project fires next.
    pub(crate) calendar: BTreeSet<(Millis, Id, Id)>,
    /// When which queued jobs expire.
    pub(crate) expiries: Expiries,
    pub(crate) retention_ms: i64,
    /// The bytes of the settings and schedules of all projects.
    pub(crate) settings_bytes: u64,
    /// Ids of processed messages without events: the next message of EVENTS records them.
    pub(crate) unrecorded: Vec<Uuid>,
    /// The spill store for queued jobs that memory has no room for.
    pub(crate) spill: Option<SpillPolicy>,
}

impl State {
    /// An empty state that keeps failed jobs in reach of a retry for `retention_ms`.
    pub fn new(retention_ms: i64) -> Self {
        Self { retention_ms, ..Self::default() }
    }

    /// The state of this moment, to be written down elsewhere while this one goes on.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.persisted)
    }

    /// Lets queued jobs sleep in `spill` once those in memory take `budget` bytes.
    #[must_use]
    pub fn with_spill(self, spill: Arc<dyn SpillStore>, budget: usize) -> Self {
        Self { spill: Some(SpillPolicy { store: spill, budget }), ..self }
    }

    /// Takes a snapshot into a state that knows nothing yet, to be followed by the events after
    /// it and by [`settle`](Self::settle).
    ///
    /// # Errors
    /// If it is not a complete snapshot.
    pub fn restore(mut self, mut from: impl BufRead) -> io::Result<Self> {
        let Self { ready, expiries, spill, .. } = &mut self;
        let persisted = SnapshotState::read(&mut from, |persisted, job, json| {
            if !job.status.is_terminal() {
                let project = persisted.projects.entry(job.project.clone()).or_default();
                project.live.insert(&job);
            }
            if job.status == Status::Queued {
                ready.insert(&job, persisted.at);
                expiries.insert(&job);
            }
            persisted.jobs.insert(job, Some(json), spill.as_ref());
        })?;
        for (project, persisted) in &persisted.projects {
            self.settings_bytes += persisted.settings.size();
            for (name, timed) in &persisted.schedules {
                self.settings_bytes += timed.size(name);
                let next = timed.next_at.map(|at| (at, project.clone(), name.clone()));
                self.calendar.extend(next);
            }
        }
        self.persisted = persisted;
        Ok(self)
    }

    /// The progress in the next message of COMMANDS.
    pub fn partial(&self) -> Option<Partial> {
        self.persisted.partial
    }

    /// A job in memory: any live one, and ended ones that the bucket does not have yet.
    pub fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.persisted.jobs.get(id)
    }

    /// The JSON of a job that sleeps, which is queued, and its version: cheaper than the job.
    pub fn spilled_json(&self, id: JobId) -> Option<(Position, String)> {
        self.persisted.jobs.spilled_json(id)
    }

    /// The live jobs of a batch.
    pub(crate) fn live_of(&self, project: &Id, batch: &Id) -> impl Iterator<Item = Arc<Job>> {
        let project = self.persisted.projects.get(project).into_iter();
        let perhaps = project.flat_map(move |project| project.perhaps_of(batch));
        perhaps.filter_map(|id| self.job(id)).filter(move |job| job.batch == *batch)
    }

    /// The active jobs of a batch that supersede others of it: there are few, however many redo jobs it has.
    pub(crate) fn superseding(&self, project: &Id, batch: &Id) -> impl Iterator<Item = Arc<Job>> {
        let persisted = self.persisted.projects.get(project);
        let perhaps = persisted.into_iter().flat_map(move |persisted| {
            let ids = persisted.perhaps_of(batch);
            ids.filter(|id| persisted.live.is_of(JobType::ProcessBatch, *id))
        });
        perhaps.filter_map(|id| self.job(id)).filter(move |job| job.batch == *batch)
    }

    /// A job, which is awake from here on: it is about to be run.
    pub(crate) fn load(&mut self, id: JobId) -> Option<Arc<Job>> {
        self.persisted.jobs.get_mut(id)?;
        self.job(id)
    }

    /// Whether [`job`](Self::job) has a job, at less cost.
    pub fn has(&self, id: JobId) -> bool {
        self.persisted.jobs.contains(id)
    }

    /// The jobs in memory. Those that sleep are read one by one.
    pub fn jobs(&self) -> impl Iterator<Item = Arc<Job>> {
        self.persisted.jobs.iter()
    }

    /// The jobs that run.
    pub fn processing(&self) -> impl Iterator<Item = &Job> {
        self.persisted.jobs.in_memory().filter(|job| job.status == Status::Processing)
    }

    /// The counts of a project, or of all.
    pub fn counts(&self, project: Option<&str>) -> Counts {
        match project {
            None => self.persisted.total,
            Some(id) => self.persisted.projects.get(id).map(|p| p.counts).unwrap_or_default(),
        }
    }

    /// The operations in progress and those that ended last, the newest first.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.persisted.operations.iter().rev()
    }

    /// An operation.
    pub fn operation(&self, id: Uuid) -> Option<&Operation> {
        self.operations().find(|operation| operation.id == id)
    }

    /// How many queued jobs of a project, or of all, wait for their time.
    pub fn scheduled(&self, project: Option<&str>) -> u64 {
        self.ready.scheduled(project)
    }

    /// The bytes that the settings and schedules of all projects count.
    pub fn settings_bytes(&self) -> u64 {
        self.settings_bytes
    }

    /// The settings of a project.
    pub fn settings(&self, project: &str) -> Settings {
        self.persisted.projects.get(project).map(|p| p.settings.clone()).unwrap_or_default()
    }

    /// What a project uses of its limits, and used in the 60 s before `now`.
    pub fn usage(&self, project: &str, now: Millis) -> ProjectUsage {
        let Some(project) = self.persisted.projects.get(project) else {
            return ProjectUsage::default();
        };
        ProjectUsage {
            running: project.counts.processing.iter().sum(),
            starts: project.starts.sum(now),
            tokens: project.tokens.sum(now),
            enqueues: project.enqueues.sum(now),
            active: project.counts.active(),
            active_bytes: project.live.bytes(),
            schedules: project.schedules.len() as u64,
        }
    }

    /// The schedules of a project, by name.
    pub fn schedules(&self, project: &str) -> impl Iterator<Item = (&Id, &ScheduleState)> {
        self.persisted.projects.get(project).into_iter().flat_map(|project| &project.schedules)
    }

    /// When the next queued job expires.
    pub fn next_expiry(&self) -> Option<Millis> {
        self.expiries.next()
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

    /// The attempts of a job: the number of its request if that sets one, else its project's
    /// current number, else the configured number at its enqueue.
    pub fn max_attempts(&self, job: &Job) -> u32 {
        let project = self.persisted.projects.get(&job.project);
        match project.and_then(|project| project.settings.max_attempts) {
            Some(attempts) if !job.own_attempts => attempts,
            _ => job.max_attempts,
        }
    }

    /// How long an ended job of a project is kept, in ms.
    pub fn retention_ms(&self, project: &str) -> i64 {
        if internal::is_internal(project) {
            return internal::RETENTION_MS;
        }
        let project = self.persisted.projects.get(project);
        let own = project.and_then(|project| project.settings.retention);
        own.map_or(self.retention_ms, |seconds| i64::from(seconds) * 1_000)
    }

    /// How long a job is kept once it is terminal, in ms.
    pub fn retention_of(&self, job: &Job) -> i64 {
        let project = self.persisted.projects.get(&job.project);
        let is_kept = || project.is_some_and(|project| project.failed.contains_key(&job.id));
        match job.job_type.is_internal() && is_kept() {
            true => internal::FAILED_RETENTION_MS,
            false => self.retention_ms(&job.project),
        }
    }

    /// How long ended jobs of any project are kept, in ms.
    pub fn longest_retention_ms(&self) -> i64 {
        let own = self.persisted.projects.values().filter_map(|project| project.settings.retention);
        own.max().map_or(0, |seconds| i64::from(seconds) * 1_000).max(self.retention_ms)
    }

    /// The last processed message of COMMANDS.
    pub fn through(&self) -> u64 {
        self.persisted.through
    }

    /// The last event.
    pub fn position(&self) -> Position {
        self.persisted.position
    }

    /// How many leaders there were.
    pub fn term(&self) -> u64 {
        self.persisted.term
    }

    /// The time of the last event: no decision may be older.
    pub fn at(&self) -> Millis {
        self.persisted.at
    }

    /// True if this message was processed recently.
    pub fn is_recent(&self, message: Uuid) -> bool {
        self.persisted.dedup.contains(message)
    }

    /// The first message of EVENTS that is younger than `oldest`; older ones can be removed.
    pub fn first_after(&self, oldest: Millis) -> u64 {
        let hour = self.persisted.hours.iter().rev().find(|(at, _)| *at <= oldest);
        hour.map_or(0, |(_, sequence)| *sequence)
    }

    /// The answer kept under an idempotency key, while the bucket does not have it.
    pub fn answer(&self, key: Digest) -> Option<&IdempotencyRecord> {
        self.persisted.answers.get(&key).map(|(_, answer)| answer)
    }
}
