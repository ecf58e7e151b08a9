//! POST /api/queue/retry: queue a failed or canceled job again, or all failed jobs of a project.

use axum::extract::State;
use job::{Id, JobFilter, JobId, command::Retry, reply::Reply};
use nats::names::Verb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, CommandRequest, DURABLE, NamesProject},
    count, parameters, status,
};
use crate::{
    app::App,
    error::Error,
    ids,
    openapi::{ClientJobType, IdempotencyKey},
};

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = RetryRequest)]
struct Request {
    /// One job; `jobId` or `retryAll: true` must be there.
    #[schema(value_type = Option<uuid::Uuid>)]
    job_id: Option<String>,
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    project_id: Option<String>,
    /// All failed jobs of the project.
    retry_all: Option<bool>,
    /// With `retryAll`: only those whose error is of this group.
    #[schema(pattern = "^[0-9a-fA-F]{16}$")]
    error_group: Option<String>,
    /// With `retryAll`: only those of this type.
    #[schema(value_type = Option<ClientJobType>)]
    r#type: Option<String>,
}

impl NamesProject for Request {
    fn project_id(&self) -> Option<&str> {
        self.project_id.as_deref()
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Retried)]
pub(crate) struct Response {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retried_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<uuid::Uuid>>)]
    job_ids: Option<Vec<JobId>>,
    message: String,
}

/// Retries one job, or all failed ones of a project, or those that match.
#[utoipa::path(
    post, path = "/api/queue/retry", tag = "queue", request_body = Request,
    params(IdempotencyKey),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn retry(State(app): State<App>, command: CommandRequest) -> Answer<Response> {
    let (request, project, key) = command.read::<Request>(Verb::Retry)?;
    let all = request.retry_all.unwrap_or(false);
    let job = match (&request.job_id, all) {
        (Some(_), true) => return Err(Error::invalid("jobId and retryAll exclude each other")),
        (None, false) => return Err(Error::missing("jobId, or retryAll: true,")),
        (Some(job), false) => Some(ids::job_id("jobId", job)?),
        (None, true) => None,
    };
    let filter = JobFilter {
        error_group: request.error_group.as_deref().map(parameters::error_group).transpose()?,
        job_type: request.r#type.as_deref().map(parameters::job_type).transpose()?,
        ..JobFilter::default()
    };
    if job.is_some() && !filter.is_all() {
        return Err(Error::invalid("errorGroup and type go with retryAll, not with jobId"));
    }
    command.note_target(target(job, request.error_group.as_deref()));
    let idempotency = key.map(|key| key.idempotency);
    let ask = Retry { project: project.clone(), job, filter, deliveries: false, idempotency };
    let response = |retried_count, job_ids, message| {
        Some(Response { success: true, retried_count, job_ids, message })
    };
    let respond = |reply| match reply {
        None => response(None, None, DURABLE.to_owned()),
        Some(Reply::Retried { jobs, count: retried, left }) => {
            let mut message = format!("queued {} again", count(retried, "job", "jobs"));
            if left > 0 {
                let left = count(left, "failed job was", "failed jobs were");
                message.push_str(&format!(
                    "; {left} left: superseded by a newer job, or past retention"
                ));
            }
            response(Some(retried), Some(jobs), message)
        }
        Some(_) => None,
    };
    match command::submit(&app, Verb::Retry, ask, respond).await {
        Err(error) => Err(explain(&app, error, &project, job).await),
        answer => answer,
    }
}

/// What the request is about, for the audit log.
fn target(job: Option<JobId>, error_group: Option<&str>) -> String {
    match (job, error_group) {
        (Some(job), _) => format!("job {job}"),
        (None, Some(group)) => format!("failed jobs of error group {group}"),
        (None, None) => "failed jobs".to_owned(),
    }
}

/// Tells a job that is past its retention from one that never was.
async fn explain(app: &App, error: Error, project: &Id, job: Option<JobId>) -> Error {
    match job {
        Some(id) if error.is_job_not_found() => match status::archived(app, id).await {
            Ok(Some(archived)) if archived.project == **project => Error::archived(id),
            _ => error,
        },
        _ => error,
    }
}
