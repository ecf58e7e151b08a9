//! What metrics is asked, and what it answers.

use job::{Id, JobId, Position, Run, time::Millis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    analytics::{Bucket, GroupBy, Range},
    audit::AuditRecord,
};

/// For the last records of the audit log.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditQuery {
    /// Of this project alone.
    pub project: Option<String>,
    /// Of the API key with this id alone.
    pub key: Option<String>,
    /// Before a record: its time and its id.
    pub before: Option<(Millis, Uuid)>,
    /// How many.
    pub limit: usize,
}

/// Records of the audit log, the last first.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditAnswer {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// The last of them, if there are more before it.
    pub next: Option<(Millis, Uuid)>,
}

/// Which runs are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunFilter {
    /// Of these projects; of all if null. A query without the field is refused: it could be about one project.
    #[serde(deserialize_with = "Option::deserialize")]
    pub projects: Option<Vec<Id>>,
    /// Of this type of job alone.
    pub job_type: Option<String>,
    /// Of this model alone.
    pub model: Option<String>,
    /// Of this processor alone.
    pub processor: Option<String>,
    /// With an error of this group alone.
    pub error_group: Option<u64>,
    /// That ended at this time or later.
    pub from: Option<Millis>,
    /// That ended before this time.
    pub to: Option<Millis>,
}

/// For jobs that ended, the last first.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndedJobsQuery {
    /// What their last runs must match.
    pub filter: RunFilter,
    /// Of this batch alone.
    pub batch: Option<String>,
    /// With this outcome alone: completed, failed or canceled.
    pub outcome: Option<String>,
    /// Which ended before this.
    pub before: Option<EndedCursor>,
    /// At most this many jobs.
    pub limit: usize,
    /// The message of EVENTS that the answer has to follow from.
    pub event: u64,
}

/// The end of a job, before which a page of ended jobs starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedCursor {
    /// Its event.
    pub position: Position,
    /// Its time.
    pub at: Millis,
}

/// Ended jobs.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndedAnswer {
    /// The jobs, with the event of their end.
    pub jobs: Vec<(Position, JobId, Archived)>,
    /// The start of the next page; absent on the last page.
    pub next: Option<EndedCursor>,
}

/// For sums over a range of time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MetricsQuery {
    /// The project; all if absent.
    pub project: Option<String>,
    /// The range.
    pub range: Range,
}

/// A job that the bucket no longer holds, from its last row in ClickHouse.
#[derive(Debug, Serialize, Deserialize)]
pub struct Archived {
    /// The project.
    pub project: String,
    /// The batch.
    pub batch: String,
    /// Its type.
    pub job_type: String,
    /// How it ended.
    pub outcome: String,
    /// The attempts that it used.
    pub attempts: u32,
    /// When it last became queued.
    pub queued_at: Millis,
    /// When its last run began.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub finished_at: Millis,
    /// What went wrong.
    pub error: String,
    /// The worker of its last run.
    pub worker: String,
    /// Tokens read by the model in its last run, and written.
    pub tokens: (u64, u64),
    /// The model of its last run.
    pub model: String,
    /// Its ended runs, oldest first; only if one job is requested.
    #[serde(default)]
    pub runs: Vec<ArchivedRun>,
}

/// One ended run of a job, as ClickHouse has it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArchivedRun {
    /// When its end was recorded.
    pub at: Millis,
    /// The run.
    pub run: Run,
    /// The attempts that had started.
    pub attempts: u32,
    /// How it ended.
    pub outcome: String,
    /// The worker.
    pub worker: String,
    /// What went wrong.
    pub error: String,
}

/// The answer to a question for an archived job.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArchivedAnswer {
    /// The job's last row.
    pub job: Option<Archived>,
}

/// For sums over any time, by bucket and group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AnalyticsQuery {
    /// What runs must match; its times are ignored.
    pub filter: RunFilter,
    /// The first time.
    pub from: Millis,
    /// The time after the last one.
    pub to: Millis,
    /// The length of a bucket.
    pub bucket: Bucket,
    /// The IANA time zone in which buckets start.
    pub time_zone: String,
    /// What is summed apart; one sum if absent.
    pub group_by: Option<GroupBy>,
    /// How many groups are listed, those with the most jobs; the others are one.
    pub groups_max: usize,
}

/// Which groups of errors are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FailureView {
    /// Neither muted nor resolved, or seen again since.
    Active,
    /// Muted.
    Muted,
    /// Resolved, and not seen since.
    Resolved,
}

/// For groups of errors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FailuresQuery {
    /// What failed runs must match; the processor is ignored.
    pub filter: RunFilter,
    /// Only groups in this state.
    #[serde(default)]
    pub view: Option<FailureView>,
    /// Groups that are muted.
    #[serde(default)]
    pub muted: Vec<u64>,
    /// Groups that are resolved, and since when: those that have occurred later are not.
    #[serde(default)]
    pub resolved: Vec<(u64, Millis)>,
    /// Sorted by the last occurrence instead of the number of jobs.
    pub latest_first: bool,
    /// How many groups come before the page.
    pub skip: usize,
    /// At most this many groups.
    pub limit: usize,
}

/// A page of groups of errors.
#[derive(Debug, Serialize, Deserialize)]
pub struct FailuresAnswer {
    /// The groups.
    pub groups: Vec<FailureGroup>,
    /// True if there are more.
    pub has_more: bool,
}

/// The failed runs whose errors have one pattern.
#[derive(Debug, Serialize, Deserialize)]
pub struct FailureGroup {
    /// The id of the group.
    pub id: u64,
    /// The last error.
    pub error: String,
    /// Jobs that failed with it.
    pub jobs: u64,
    /// Runs that failed with it, also those of jobs that were retried.
    pub runs: u64,
    /// When it occurred first, also before the time range.
    pub first_at: Millis,
    /// When it occurred last in the time range.
    pub last_at: Millis,
    /// Some of its projects.
    pub projects: Vec<String>,
    /// Some of its models.
    pub models: Vec<String>,
    /// Some of its jobs.
    pub sample_jobs: Vec<JobId>,
    /// Failed runs by hour, in the last 48 hours of the time range: the start of the hour, and their number. Hours without
    /// any are absent.
    pub hours: Vec<(Millis, u64)>,
}
