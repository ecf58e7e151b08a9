//! Commands. A message on COMMANDS carries many of one verb.

mod bounded;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Backoff, Digest, Id, Idempotency, JobFilter, JobId, JobLabels, JobType, Json, Patch, Run,
    StoredResult, Usage, operation::Operation, schedule::Schedule, time::Millis,
    trace::TraceContext,
};

/// One thing asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// New jobs.
    Enqueue(Enqueue),
    /// Stop jobs.
    Cancel(Cancel),
    /// Queue ended jobs again.
    Retry(Retry),
    /// Change the settings of a project.
    Project(Project),
    /// Set or remove a schedule.
    Schedule(SetSchedule),
    /// Change a queued job.
    Update(Update),
    /// Start or abort an operation.
    Operation(OperationCommand),
    /// A processor began a run.
    Started(Started),
    /// A processor says how far a run is.
    Progress(Progress),
    /// A run ended.
    Outcome(Outcome),
    /// Something that only the next version knows.
    #[cfg(feature = "next-version")]
    Note(Note),
}

/// A command of the next version.
#[cfg(feature = "next-version")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// What to note.
    pub note: Id,
}

/// The priority of a request that names none.
pub const PRIORITY_DEFAULT: u16 = 10;

/// New jobs of one project: accepted as a whole, or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enqueue {
    /// The project they belong to.
    pub project: Id,
    /// What kind of work they are.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// 0 to 1000, lower first.
    pub priority: u16,
    /// Not to be run before this time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_at: Option<Millis>,
    /// How long each may wait to be started, in seconds; if absent, as long as the project sets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_in: Option<u32>,
    /// The attempts each may use; the configuration's number where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_attempts: Option<u32>,
    /// How long failed attempts wait; the project's or the configuration's rule where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<Backoff>,
    /// Whether the live jobs of the same batches are cancelled first.
    pub supersede: bool,
    /// The jobs, each of another batch.
    pub jobs: Vec<NewJob>,
    /// What makes a repeat of the request harmless.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency: Option<Idempotency>,
    /// The span of the request, if it is traced.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<TraceContext>,
}

impl Enqueue {
    /// Jobs of batches, of default priority, that supersede the active jobs of the same batches.
    pub fn new(project: Id, jobs: Vec<NewJob>) -> Self {
        Self {
            project,
            job_type: JobType::ProcessBatch,
            priority: PRIORITY_DEFAULT,
            run_at: None,
            expires_in: None,
            max_attempts: None,
            retry: None,
            supersede: true,
            jobs,
            idempotency: None,
            trace: None,
        }
    }
}

/// One new job of an [`Enqueue`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewJob {
    /// Its id, made by the edge.
    pub id: JobId,
    /// The batch it works on.
    pub batch: Id,
    /// What its handler is given.
    #[serde(default)]
    pub data: Json,
}

impl NewJob {
    /// A job without data.
    pub fn new(id: JobId, batch: Id) -> Self {
        Self { id, batch, data: Json::default() }
    }
}

/// Stop the live jobs of a project, or of some of its batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cancel {
    /// The project.
    pub project: Id,
    /// The batches; all where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub batches: Option<Vec<Id>>,
    /// What makes a repeat of the request harmless.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency: Option<Idempotency>,
}

/// Queue a failed or cancelled job again, or all failed jobs of a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// The project.
    pub project: Id,
    /// The job; all failed ones that match `filter` if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub job: Option<JobId>,
    /// Which failed jobs.
    #[serde(skip_serializing_if = "JobFilter::is_all", default)]
    pub filter: JobFilter,
    /// True for deliveries to the webhook of the project instead of its jobs.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub deliveries: bool,
    /// What makes a repeat of the request harmless.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency: Option<Idempotency>,
}

/// Change the settings of a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// The project.
    pub project: Id,
    /// What is to change.
    pub change: Patch,
}

/// Set or remove a schedule of a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetSchedule {
    /// The project.
    pub project: Id,
    /// Its name in the project.
    pub name: Id,
    /// The new schedule; absent to remove it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub schedule: Option<Schedule>,
}

/// Change a queued job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// The project.
    pub project: Id,
    /// The job.
    pub job: JobId,
    /// The new priority, if it changes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<u16>,
    /// The time before which it does not run, if that changes; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_at: Option<Millis>,
    /// How long it may wait from now on, or from `run_at` if that is later, in seconds, if that
    /// changes; 0: it does not expire.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_in: Option<u32>,
}

/// Start or abort an operation over many jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationCommand {
    /// Start one.
    Start(Box<StartOperation>),
    /// Abort one.
    Abort(AbortOperation),
}

/// Start an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartOperation {
    /// The operation, without progress.
    pub operation: Operation,
    /// What makes a repeat of the request harmless.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency: Option<Idempotency>,
}

/// Abort an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AbortOperation {
    /// The operation.
    pub operation: Uuid,
    /// Only if it concerns no other projects than these; `None` stands for all.
    pub projects: Option<Vec<Id>>,
    /// The name of the API key that requests it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requested_by: Option<Id>,
}

/// What a processor reports of a run. The token of the run proves that it has received the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunReport<'a> {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: Run,
    /// The worker that reports, if the report names it.
    pub worker: Option<&'a Id>,
    /// The token.
    pub token: Option<Digest>,
}

impl Command {
    /// The run that a processor reports on; `None` for commands of others.
    pub fn run_report(&self) -> Option<RunReport<'_>> {
        let (job, run, worker, token) = match self {
            Self::Started(report) => (report.job, report.run, Some(&report.worker), report.token),
            Self::Progress(report) => (report.job, report.run, None, report.token),
            Self::Outcome(report) => (report.job, report.run, Some(&report.worker), report.token),
            _ => return None,
        };
        Some(RunReport { job, run, worker, token })
    }
}

/// A processor began a run. It may come late, twice or never: an outcome implies it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// The job.
    pub job: JobId,
    /// The run that started.
    pub run: Run,
    /// The worker that started it.
    pub worker: Id,
    /// When, by the worker's clock.
    pub at: Millis,
    /// The token of the run, from the message with its work.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Digest>,
}

/// How far a run is. What comes late, or not at all, harms nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: Run,
    /// What its handler says.
    pub progress: Json,
    /// The token of the run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Digest>,
}

/// A run ended, or never began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The job.
    pub job: JobId,
    /// The run that ended.
    pub run: Run,
    /// The worker that ran it.
    pub worker: Id,
    /// Labels for metrics, in case the outcome is refused and the job is no longer known.
    pub labels: JobLabels,
    /// When the run began, by the worker's clock; absent where it did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<Millis>,
    /// When it ended, by the worker's clock.
    pub finished_at: Millis,
    /// What it cost.
    #[serde(default)]
    pub usage: Usage,
    /// How it ended.
    pub end: End,
    /// The token of the run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Digest>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// The work is done.
    Done {
        /// What the handler returned, if it is small enough to be kept with the job.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        result: Option<Json>,
        /// The result in the result store, if it is larger: stored before the outcome is recorded.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        stored: Option<StoredResult>,
    },
    /// It failed and may be tried again.
    Retry {
        /// What went wrong.
        error: Id,
        /// The minimum wait in ms, if the handler knows one.
        #[serde(rename = "afterMs", skip_serializing_if = "Option::is_none", default)]
        after_ms: Option<i64>,
    },
    /// The provider asked to be called later: no attempt is used.
    Deferred {
        /// Why.
        error: Id,
        /// How long to wait at least, in ms; as after a failure if absent.
        #[serde(rename = "afterMs", skip_serializing_if = "Option::is_none", default)]
        after_ms: Option<i64>,
    },
    /// It failed and would fail again.
    Reject {
        /// What went wrong.
        error: Id,
    },
    /// The processor hands it back unfinished, because it stops.
    Released,
    /// The processor was given a run that another processor had been given before.
    Redelivered,
}
