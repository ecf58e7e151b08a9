//! The state that snapshots hold: the content of all events.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{self, BufRead, Write},
    ops::Bound,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Counts, Digest, Id, IdempotencyRecord, Job, JobId, Position, Settings,
    active_jobs::{ActiveJobs, batch_key},
    bulk::BulkQueue,
    dedup_window::DedupWindow,
    jobs::{FrozenJobs, Jobs},
    operation::Operations,
    schedule::ScheduleState,
    sliding_window::SlidingWindow,
    time::Millis,
    version,
};

/// What one project has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Project {
    pub counts: Counts,
    /// Failed jobs, and until when they are kept: what `retryAll` reaches.
    pub failed: BTreeMap<JobId, Millis>,
    #[serde(default)]
    pub settings: Settings,
    #[serde(default)]
    pub schedules: BTreeMap<Id, ScheduleState>,
    /// Runs that started in the last minute.
    #[serde(default)]
    pub starts: SlidingWindow,
    /// Tokens that were counted in the last minute.
    #[serde(default)]
    pub tokens: SlidingWindow,
    /// Jobs that were enqueued in the last minute.
    #[serde(default)]
    pub enqueues: SlidingWindow,
    /// Set while the last run that ended was asked to come back later: nothing starts before this time,
    /// and one run at a time after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred_until: Option<Millis>,
    /// The last error of its internal jobs, if the last one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Id>,
    /// Whether the last run of the mesh's own failed.
    #[serde(default)]
    pub failing: bool,
    /// Ends without a delivery, because too many were pending.
    #[serde(default)]
    pub dropped: u64,
    /// The time of the last event of its jobs.
    #[serde(default)]
    pub last_at: Millis,
    /// Active jobs.
    #[serde(skip)]
    pub live: ActiveJobs,
}

impl Project {
    /// Removes what no longer counts.
    pub fn forget_old(&mut self, at: Millis) {
        self.failed.retain(|_, until| *until > at);
        for window in [&mut self.starts, &mut self.tokens, &mut self.enqueues] {
            window.forget(at);
        }
    }

    /// True if it never had a job, and has no setting and no schedule.
    pub fn is_empty(&self) -> bool {
        self.settings == Settings::default()
            && self.schedules.is_empty()
            && self.counts.total() == 0
    }

    /// True if it can be forgotten: it is empty, or it has no setting, no schedule and no active job, and its jobs had no
    /// event for `kept_ms`.
    pub fn is_over(&self, at: Millis, kept_ms: i64) -> bool {
        // It is 0 in snapshots of an earlier version.
        let is_recent = self.last_at == 0 || self.last_at + kept_ms >= at;
        self.is_empty()
            || !is_recent
                && self.settings == Settings::default()
                && self.schedules.is_empty()
                && self.counts.active() == 0
                && self.failed.is_empty()
    }

    /// The failed jobs behind one, and until when they are kept, in order.
    pub fn failed_after(&self, after: Option<JobId>) -> impl Iterator<Item = (JobId, Millis)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.failed.range((from, Bound::Unbounded)).map(|(id, until)| (*id, *until))
    }

    /// The active jobs with the key of a batch; the caller compares the batch id.
    pub fn perhaps_of(&self, batch: &Id) -> impl DoubleEndedIterator<Item = JobId> {
        self.live.of_key(batch_key(batch)).map(|(_, id)| id)
    }

    /// What a snapshot holds of it: without what follows from the jobs.
    fn frozen(&self) -> Self {
        Self {
            counts: self.counts,
            failed: self.failed.clone(),
            settings: self.settings.clone(),
            schedules: self.schedules.clone(),
            starts: self.starts.clone(),
            tokens: self.tokens.clone(),
            enqueues: self.enqueues.clone(),
            deferred_until: self.deferred_until,
            last_error: self.last_error.clone(),
            failing: self.failing,
            dropped: self.dropped,
            last_at: self.last_at,
            live: ActiveJobs::default(),
        }
    }
}

/// The content of all events, as a snapshot holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotState {
    /// The last processed message of COMMANDS.
    pub through: u64,
    /// The last event.
    pub position: Position,
    /// How many leaders there were.
    pub term: u64,
    /// The time of the last event.
    pub at: Millis,
    /// Live jobs, and ended ones that the bucket does not have yet.
    #[serde(skip)]
    pub jobs: Jobs,
    pub projects: HashMap<Id, Project>,
    pub total: Counts,
    pub dedup: DedupWindow,
    /// Answers that the bucket does not have yet.
    pub answers: HashMap<Digest, (Position, IdempotencyRecord)>,
    /// The progress in the next message of COMMANDS, if it is partly processed.
    #[serde(default)]
    pub partial: Option<Partial>,
    /// Cancels and retries of many jobs that are in progress.
    #[serde(default)]
    pub bulk: BulkQueue,
    /// Operations of clients, in progress and ended.
    #[serde(default)]
    pub operations: Operations,
    /// The first message of each hour: where to cut EVENTS by age.
    pub hours: VecDeque<(Millis, u64)>,
}

impl SnapshotState {
    /// What a snapshot holds but the jobs, taken at once.
    fn frozen(&self) -> Self {
        let projects = self.projects.iter().map(|(id, project)| (id.clone(), project.frozen()));
        Self {
            through: self.through,
            position: self.position,
            term: self.term,
            at: self.at,
            jobs: Jobs::default(),
            projects: projects.collect(),
            total: self.total,
            dedup: self.dedup.clone(),
            answers: self.answers.clone(),
            partial: self.partial,
            bulk: self.bulk.clone(),
            operations: self.operations.clone(),
            hours: self.hours.clone(),
        }
    }
}

/// The state at one moment, to be written down while the state goes on.
#[derive(Debug, PartialEq)]
pub struct Snapshot {
    known: SnapshotState,
    jobs: FrozenJobs,
}

impl Snapshot {
    /// Takes what is known at this moment.
    pub(crate) fn of(known: &SnapshotState) -> Self {
        Self { known: known.frozen(), jobs: known.jobs.frozen() }
    }

    /// Writes the state as lines of JSON: what is known but the jobs, their number, each job.
    ///
    /// # Errors
    /// If `to` cannot be written, or the data of a job cannot be read.
    pub fn write(self, to: &mut dyn Write) -> io::Result<()> {
        let mut line = |value: &dyn Fn(&mut Vec<u8>) -> serde_json::Result<()>| {
            let mut bytes = Vec::new();
            value(&mut bytes)?;
            bytes.push(b'\n');
            to.write_all(&bytes)
        };
        let head = Head { required_version: version::FIRST, known: &self.known };
        line(&|to| serde_json::to_writer(to, &head))?;
        line(&|to| serde_json::to_writer(to, &self.jobs.len()))?;
        self.jobs.write(to)
    }
}

impl SnapshotState {
    /// Reads what [`Snapshot::write`] wrote; each job goes to `take`, with its JSON.
    pub fn read(
        from: &mut dyn BufRead,
        mut take: impl FnMut(&mut Self, Job, &str),
    ) -> io::Result<Self> {
        let mut lines = from.lines();
        let mut line = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
        let head = line()?;
        version::check(serde_json::from_str::<Required>(&head)?.required_version)
            .map_err(io::Error::other)?;
        let mut known: Self = serde_json::from_str(&head)?;
        let jobs: usize = serde_json::from_str(&line()?)?;
        for _ in 0..jobs {
            let json = line()?;
            take(&mut known, serde_json::from_str(&json)?, &json);
        }
        Ok(known)
    }
}

/// The first line of a snapshot.
#[derive(Serialize)]
struct Head<'a> {
    /// The version that a program must know to read it.
    required_version: u32,
    #[serde(flatten)]
    known: &'a SnapshotState,
}

/// What must be known before anything else of a snapshot.
#[derive(Deserialize)]
struct Required {
    #[serde(default = "version::first")]
    required_version: u32,
}

/// How far a message of COMMANDS is processed if its events need more than one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// The item to continue with; the items before it are done.
    pub item: u32,
    /// Jobs that this item has canceled or retried so far.
    pub jobs: u64,
    /// Batches they belonged to.
    pub batches: u64,
    /// The id of the message; `None` if it has none, or an earlier version wrote this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<Uuid>,
}

/// What a project uses of its limits, and used in the last 60 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectUsage {
    /// Jobs that run now.
    pub running: u64,
    /// Runs that started.
    pub starts: u64,
    /// Tokens that were counted.
    pub tokens: u64,
    /// Jobs that were enqueued.
    #[serde(default)]
    pub enqueues: u64,
    /// Queued and running jobs.
    #[serde(default)]
    pub active: u64,
    /// Bytes of their data.
    #[serde(default)]
    pub active_bytes: u64,
    /// Schedules.
    #[serde(default)]
    pub schedules: u64,
}
