//! What clients see of a job.

use job::{
    Id, Job, JobId, Json, RequeueReason, Status, Usage,
    time::{Millis, rfc3339},
};
use nats::query::Archived;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::openapi::{Anything, ClientJobType, When};

/// A job in an answer. A time that has not happened is absent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Job)]
pub(crate) struct JobView {
    #[schema(value_type = uuid::Uuid)]
    id: JobId,
    #[schema(value_type = String)]
    project_id: Id,
    #[schema(value_type = String)]
    batch_id: Id,
    #[schema(value_type = ClientJobType)]
    r#type: String,
    #[schema(value_type = Status)]
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Anything, required = false)]
    data: Option<Json>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Time>,
    /// When the job is canceled if it is still queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    superseded_by: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Anything, required = false)]
    result: Option<Json>,
    /// The URL of a result that is too large to be shown here.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_url: Option<String>,
    /// How many bytes that result has.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Tokens>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    model: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    worker: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Anything, required = false)]
    progress: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<StepView>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    archived: bool,
}

/// A step of a job's life.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Step)]
struct StepView {
    at: Time,
    #[schema(value_type = Status)]
    status: String,
    run: u32,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    worker: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: Option<Id>,
    /// Why it was queued again.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<RequeueReason>,
    /// When it may start again.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Time>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Tokens {
    input: u64,
    output: u64,
}

/// A time, written as RFC 3339.
#[derive(Debug, ToSchema)]
#[schema(value_type = When)]
pub(crate) struct Time(pub Millis);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

impl JobView {
    /// The view of a job that state or the bucket has.
    pub fn job(job: Job) -> Self {
        let history = job.history();
        let ran = history.started_at.is_some() || history.usage != Usage::default();
        let tokens =
            Tokens { input: history.usage.input_tokens, output: history.usage.output_tokens };
        Self {
            id: job.id,
            r#type: job.job_type.name().to_owned(),
            status: job.status.name().to_owned(),
            priority: Some(job.priority),
            data: Some(job.data.clone()),
            attempts: job.attempts,
            max_attempts: Some(job.max_attempts),
            created_at: Time(created_at(job.id).unwrap_or(job.created_at)),
            run_at: job.run_at.map(Time),
            expires_at: job.expires_at.map(Time),
            started_at: history.started_at.map(Time),
            completed_at: history.completed_at.map(Time),
            error: history.error.clone(),
            superseded_by: history.superseded_by,
            result: history.result.clone(),
            result_url: history.stored.map(|_| result_url(job.id)),
            result_bytes: history.stored.map(|stored| stored.bytes),
            tokens: (ran && job.status != Status::Processing).then_some(tokens),
            model: history.usage.model.clone(),
            worker: history.worker.clone(),
            progress: history.progress.clone(),
            history: Some(steps_of(&job)),
            archived: false,
            project_id: job.project,
            batch_id: job.batch,
        }
    }

    /// The view of a live job in a list.
    pub fn summary(job: Job) -> Self {
        Self {
            data: None,
            result: None,
            result_url: None,
            result_bytes: None,
            history: None,
            ..Self::job(job)
        }
    }

    /// The view of an ended job in a list, as ClickHouse has it.
    pub fn ended(id: JobId, job: Archived) -> Self {
        Self { archived: false, history: None, ..Self::archived(id, job) }
    }

    /// The view of a job that only ClickHouse has.
    pub fn archived(id: JobId, job: Archived) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty()).map(Id::from);
        let steps = job.runs.into_iter().map(|run| StepView {
            at: Time(run.at),
            reason: match run.outcome.as_str() {
                "retry" => Some(RequeueReason::Retry),
                "lost" => Some(RequeueReason::Lost),
                "released" => Some(RequeueReason::Released),
                "deferred" => Some(RequeueReason::Deferred),
                _ => None,
            },
            run_at: None,
            status: match run.outcome.as_str() {
                "retry" | "lost" | "released" | "deferred" => Status::Queued.name().to_owned(),
                _ => run.outcome,
            },
            run: run.run,
            attempt: run.attempts,
            worker: text(run.worker),
            error: text(run.error),
        });
        let (input, output) = job.tokens;
        Self {
            id,
            project_id: job.project.into(),
            batch_id: job.batch.into(),
            r#type: job.job_type,
            status: job.outcome,
            priority: None,
            data: None,
            attempts: job.attempts,
            max_attempts: None,
            created_at: Time(created_at(id).unwrap_or(job.queued_at)),
            run_at: None,
            expires_at: None,
            started_at: job.started_at.map(Time),
            completed_at: Some(Time(job.finished_at)),
            error: text(job.error),
            superseded_by: None,
            result: None,
            result_url: None,
            result_bytes: None,
            tokens: job.started_at.map(|_| Tokens { input, output }),
            model: text(job.model),
            worker: text(job.worker),
            progress: None,
            history: Some(steps.collect()),
            archived: true,
        }
    }

    /// The job's id.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Whether the job stands so.
    pub fn is(&self, status: Status) -> bool {
        self.status == status.name()
    }

    /// Its project.
    pub fn project(&self) -> &Id {
        &self.project_id
    }

    /// Whether nothing more happens to the job by itself.
    pub fn is_ended(&self) -> bool {
        [Status::Completed, Status::Failed, Status::Canceled].into_iter().any(|it| self.is(it))
    }

    /// Omits data, result and progress, which are the client's own.
    pub fn hide_content(&mut self) {
        (self.data, self.result, self.progress) = (None, None, None);
        (self.result_url, self.result_bytes) = (None, None);
    }

    /// Omits the history unless it was requested.
    pub fn show_history(&mut self, shown: bool) {
        if !shown {
            self.history = None;
        }
    }
}

/// Which services answer. `state` is the one that leads.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct Health {
    pub nats: bool,
    pub state: bool,
    pub processor: bool,
    pub metrics: bool,
    /// How many NATS servers may fail now without stopping the mesh: 0 without a cluster.
    #[serde(rename = "spareServers", skip_serializing_if = "Option::is_none")]
    pub spare_servers: Option<usize>,
    /// Messages that no service could process: they are set aside in the stream REJECTED.
    #[serde(rename = "rejectedMessages", skip_serializing_if = "Option::is_none")]
    pub rejected_messages: Option<u64>,
    /// Subjects whose messages NATS does not store, though it answers: its disk is full or failing. Free
    /// space, then restart nats-server.
    #[serde(rename = "unstoredSubjects", skip_serializing_if = "Vec::is_empty")]
    pub unstored_subjects: Vec<String>,
}

/// The URL of a job's result.
fn result_url(job: JobId) -> String {
    format!("/api/queue/jobs/{job}/result")
}

/// Every step of a job, as far as they are kept, from the first.
fn steps_of(job: &Job) -> Vec<StepView> {
    let first = StepView {
        at: Time(job.created_at),
        status: Status::Queued.name().to_owned(),
        run: 1,
        attempt: 0,
        worker: None,
        error: None,
        reason: None,
        run_at: None,
    };
    let steps = job.history().timeline.iter().map(|step| StepView {
        at: Time(step.at),
        status: step.status.name().to_owned(),
        run: step.run,
        attempt: step.attempts,
        worker: step.worker.clone(),
        error: step.error.clone(),
        reason: step.why,
        run_at: step.run_at.map(Time),
    });
    std::iter::once(first).chain(steps).collect()
}

/// When a job was made, which a UUIDv7 tells in ms.
fn created_at(id: JobId) -> Option<Millis> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    Some(i64::try_from(seconds).ok()? * 1_000 + i64::from(nanos / 1_000_000))
}
