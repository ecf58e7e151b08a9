//! What clients see of a job.

use job::{Id, Job, JobId, Json, Status, time::Millis, time::rfc3339};
use mesh::ask::Archived;
use serde::{Serialize, Serializer};

/// A job in an answer. A time that has not happened is absent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobView {
    id: JobId,
    project_id: Id,
    batch_id: Id,
    r#type: String,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Json>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Tokens>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<Id>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    archived: bool,
}

#[derive(Debug, Serialize)]
struct Tokens {
    input: u64,
    output: u64,
}

/// A time, written as RFC 3339.
#[derive(Debug)]
pub(crate) struct Time(pub Millis);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

impl JobView {
    /// The view of a job that state or the bucket has.
    pub fn job(job: Job) -> Self {
        let ran = job.started_at.is_some() || !job.spent.is_nothing() || job.spent.model.is_some();
        let tokens = Tokens { input: job.spent.input_tokens, output: job.spent.output_tokens };
        Self {
            id: job.id,
            project_id: job.project,
            batch_id: job.batch,
            r#type: job.kind.name().to_owned(),
            status: job.status.name().to_owned(),
            priority: Some(job.priority),
            data: Some(job.data),
            attempts: job.attempts,
            max_attempts: Some(job.max_attempts),
            created_at: Time(job.created_at),
            run_at: job.run_at.map(Time),
            started_at: job.started_at.map(Time),
            completed_at: job.completed_at.map(Time),
            error: job.error,
            superseded_by: job.superseded_by,
            result: job.result,
            tokens: (ran && job.status != Status::Processing).then_some(tokens),
            model: job.spent.model,
            worker: job.worker,
            archived: false,
        }
    }

    /// The view of a job that only ClickHouse has.
    pub fn archived(id: JobId, job: Archived) -> Self {
        Self {
            id,
            project_id: job.project.into(),
            batch_id: job.batch.into(),
            r#type: job.kind,
            status: job.outcome,
            priority: None,
            data: None,
            attempts: job.attempts,
            max_attempts: None,
            created_at: Time(created_at(id).unwrap_or(job.queued_at)),
            run_at: None,
            started_at: job.started_at.map(Time),
            completed_at: Some(Time(job.finished_at)),
            error: Some(job.error).filter(|error| !error.is_empty()).map(Id::from),
            superseded_by: None,
            result: None,
            tokens: None,
            model: None,
            worker: None,
            archived: true,
        }
    }
}

/// When a job was made, which a UUIDv7 tells in ms.
fn created_at(id: JobId) -> Option<Millis> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    Some(i64::try_from(seconds).ok()? * 1_000 + i64::from(nanos / 1_000_000))
}
