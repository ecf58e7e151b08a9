//! What state is asked, and what it answers.

use job::{
    ByClass, Counts, Id, Job, JobFilter, JobId, JobType, Limits, Position, ProjectUsage, Run,
    Settings, Status,
    delivery::Deliveries,
    operation::{Operation, OperationAction},
    preview::PreviewCursor,
    schedule::ScheduleState,
    time::Millis,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// For a live job.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobQuery {
    /// Its id.
    pub job: JobId,
}

/// The job, where state's memory has it: the live ones, and those that the bucket lacks yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobAnswer {
    /// The job.
    pub job: Option<Job>,
    /// Up to which message of COMMANDS this is so.
    pub through: u64,
}

/// For the counts of a project, or of all.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatsQuery {
    /// The project.
    pub project: Option<String>,
}

/// The counts, and what the processors have.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatsAnswer {
    /// Jobs by status.
    pub counts: Counts,
    /// Queued jobs that wait for their time.
    pub scheduled: u64,
    /// Live processors.
    pub processors: u64,
    /// Jobs that they run at once.
    pub capacity: u64,
    /// The limits of the project.
    pub limits: Limits,
    /// Up to which event this is true.
    pub position: Position,
}

/// For the settings of a project.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectQuery {
    /// The project.
    pub project: Id,
}

/// The settings of a project; the configuration's values replace those that are not set.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectAnswer {
    /// The settings.
    pub settings: Settings,
    /// What it used of its limits in the last 60 s.
    pub usage: ProjectUsage,
    /// How the deliveries to its webhook stand.
    #[serde(default)]
    pub deliveries: Deliveries,
}

/// The schedules of a project.
#[derive(Debug, Serialize, Deserialize)]
pub struct SchedulesAnswer {
    /// By name.
    pub schedules: Vec<(Id, ScheduleState)>,
}

/// For active jobs.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobsQuery {
    /// Of these projects; of all if null. A query without the field is refused: it could be about one project.
    #[serde(deserialize_with = "Option::deserialize")]
    pub projects: Option<Vec<Id>>,
    /// Of this batch alone.
    pub batch: Option<Id>,
    /// In this status alone.
    pub status: Option<Status>,
    /// Of this type alone.
    pub job_type: Option<JobType>,
    /// Running at this processor alone.
    pub processor: Option<Id>,
    /// Whose ids come before this one: the page before ended there.
    pub before: Option<JobId>,
    /// At most this many jobs.
    pub limit: usize,
    /// Which of these ended jobs are live again.
    pub live: Vec<JobId>,
}

/// Live jobs, the newest first by their ids, without data and results.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobsAnswer {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// The start of the next page; absent on the last page.
    pub next: Option<JobId>,
    /// Of the jobs that were asked about, those that are live.
    pub live: Vec<JobId>,
    /// The last message of EVENTS that this follows from.
    pub event: u64,
}

/// Which of these runs a processor may run, or go on with.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunsQuery {
    /// The processor.
    pub processor: String,
    /// The runs.
    pub runs: Vec<(JobId, Run)>,
}

/// Some of the runs that were asked for: those that may be run, or those that may not go on.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunsAnswer {
    /// The runs.
    pub runs: Vec<(JobId, Run)>,
}

/// What projects are sorted by: the largest value first, and ids in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum ProjectOrder {
    /// The id.
    Id,
    /// Queued jobs.
    Queued,
    /// Running jobs.
    Processing,
    /// Failed jobs.
    Failed,
    /// Tokens in the last 60 s.
    Tokens,
}

impl ProjectOrder {
    /// All orders.
    pub const ALL: [Self; 5] =
        [Self::Id, Self::Queued, Self::Processing, Self::Failed, Self::Tokens];

    /// Its name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Failed => "failed",
            Self::Tokens => "tokens",
        }
    }
}

/// For a page of projects.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectsQuery {
    /// Of these; of all if null.
    #[serde(deserialize_with = "Option::deserialize")]
    pub projects: Option<Vec<Id>>,
    /// Only those whose ids contain this, in lower or upper case.
    pub search: Option<String>,
    /// Their order.
    pub order: ProjectOrder,
    /// How many come before the page.
    pub skip: usize,
    /// At most this many.
    pub limit: usize,
}

/// A page of projects.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectsAnswer {
    /// The projects.
    pub projects: Vec<ProjectSummary>,
    /// How many match, on all pages.
    pub total: usize,
}

/// A project in a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectSummary {
    /// Its id.
    pub project: Id,
    /// Its jobs by status.
    pub counts: Counts,
    /// Queued jobs that wait for their time.
    pub scheduled: u64,
    /// Bytes of the data of its active jobs.
    pub active_bytes: u64,
    /// True if nothing of it starts.
    pub paused: bool,
    /// Its limits.
    pub limits: Limits,
    /// What it used of them in the last 60 s.
    pub usage: ProjectUsage,
    /// How many schedules it has.
    pub schedules: usize,
}

/// For deliveries to the webhook of a project.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeliveriesQuery {
    /// The project.
    pub project: Id,
    /// True for those that were given up, false for those that wait.
    pub is_failed: bool,
    /// How many come before the page.
    pub skip: usize,
    /// At most this many.
    pub limit: usize,
}

/// A page of deliveries.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeliveriesAnswer {
    /// Those that memory holds.
    pub jobs: Vec<Job>,
    /// Terminal ones that memory has evicted.
    pub unread: Vec<JobId>,
    /// How many there are, on all pages.
    pub total: usize,
}

/// For the state service that leads.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaderQuery {}

/// The state service that leads.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaderAnswer {
    /// How many leaders there have been.
    pub term: u64,
    /// Slots of the processors that are online.
    pub capacity: u64,
}

/// For the work that could start now.
#[derive(Debug, Serialize, Deserialize)]
pub struct DemandQuery {}

/// The work of all projects that processors could do now.
#[derive(Debug, Serialize, Deserialize)]
pub struct DemandAnswer {
    /// Queued jobs that could start now, if slots were free.
    pub ready: u64,
    /// Running jobs.
    pub running: u64,
    /// Slots of the processors that are online.
    pub slots: usize,
    /// Processors that are online and take the jobs of clients.
    pub processors: usize,
    /// How long the oldest ready job of each class has been queued, in ms.
    pub oldest_ready_ms: ByClass<Option<u64>>,
}

/// For operations.
#[derive(Debug, Serialize, Deserialize)]
pub struct OperationsQuery {
    /// Only those that concern no other projects than these; all if null.
    #[serde(deserialize_with = "Option::deserialize")]
    pub projects: Option<Vec<Id>>,
    /// Only this one.
    pub operation: Option<Uuid>,
    /// How many come before the page.
    pub skip: usize,
    /// At most this many.
    pub limit: usize,
}

/// Operations, the newest first.
#[derive(Debug, Serialize, Deserialize)]
pub struct OperationsAnswer {
    /// The operations of the page.
    pub operations: Vec<Operation>,
    /// How many match, on all pages.
    pub total: usize,
}

/// For a slice of what an operation would change.
#[derive(Debug, Serialize, Deserialize)]
pub struct PreviewQuery {
    /// What the operation does.
    pub action: OperationAction,
    /// To jobs of these projects; of all if null.
    #[serde(deserialize_with = "Option::deserialize")]
    pub projects: Option<Vec<Id>>,
    /// Which of their jobs.
    pub filter: JobFilter,
    /// The start of the slice; absent for the first.
    pub from: Option<PreviewCursor>,
    /// At most this many samples.
    pub samples_max: usize,
}

/// For the processors.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessorsQuery {}

/// The processors, by name.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessorsAnswer {
    /// The processors: those that are online, and those that went offline lately.
    pub processors: Vec<ProcessorSummary>,
}

/// A processor.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessorSummary {
    /// Its name, of one process alone.
    pub processor: Id,
    /// False if it has missed its heartbeats.
    pub online: bool,
    /// True while it stops and takes no further work.
    pub draining: bool,
    /// How many jobs it runs at once.
    pub capacity: usize,
    /// How many it ran at its last heartbeat.
    pub running: usize,
    /// The types of jobs that it takes.
    pub job_types: Vec<JobType>,
    /// The names of its handlers.
    pub handlers: Vec<Id>,
    /// Its version; absent if it does not report one.
    pub version: Option<Id>,
    /// When it started, by its clock; absent if it does not report it.
    pub started_at: Option<Millis>,
    /// How long ago its last heartbeat arrived, in ms.
    pub heartbeat_age_ms: u64,
}
