//! The state: made, written down, restored, and read.

use std::{collections::BTreeSet, sync::Arc};

use uuid::Uuid;

use crate::{
    Answer, Counts, Digest, Frozen, Id, Job, JobId, Partial, Position, Ready, Settings, Status,
    Usage, behind::Touched, fold::add_live, known::Known, schedule::Timed, time::Millis,
};

/// The state of all jobs, and what follows from it.
#[derive(Debug, Default)]
pub struct State {
    pub(crate) known: Known,
    pub(crate) ready: Ready,
    pub(crate) touched: Touched,
    /// When which schedule of which project fires next.
    pub(crate) calendar: BTreeSet<(Millis, Id, Id)>,
    pub(crate) retention_ms: i64,
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

    /// The state of this moment, to be written down elsewhere while this one goes on.
    pub fn freeze(&self) -> Frozen {
        Frozen::of(&self.known)
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
        for job in known.jobs.values_mut() {
            let job = Arc::make_mut(job);
            job.timeline.shrink_to_fit();
            if !job.status.is_terminal() {
                let project = known.projects.entry(job.project.clone()).or_default();
                add_live(&mut project.live, job);
            }
            if job.status == Status::Queued {
                ready.insert(job, known.at);
            }
        }
        Ok(state)
    }

    /// How far the next message of COMMANDS is folded.
    pub fn partial(&self) -> Option<Partial> {
        self.known.partial
    }

    /// A job in memory: any live one, and ended ones that the bucket does not have yet.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.known.jobs.get(&id).map(AsRef::as_ref)
    }

    /// The jobs in memory.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.known.jobs.values().map(AsRef::as_ref)
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

    /// The answer kept under an idempotency key, while the bucket does not have it.
    pub fn answer(&self, key: Digest) -> Option<&Answer> {
        self.known.answers.get(&key).map(|(_, answer)| answer)
    }
}
