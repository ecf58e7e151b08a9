//! POST /api/queue/retry: queue a failed or canceled job again, or all failed jobs of a project.

use axum::{extract::State, http::HeaderMap};
use job::{Id, JobId, command::Retry, reply::Reply};
use nats::names::Verb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, DURABLE, accepted, count, ok, status};
use crate::{
    app::App,
    body::{self, Body, NoQuery},
    error::Error,
    ids::{self, Key},
    openapi::IdempotencyKey,
    submit::Submitted,
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

/// Retries one job, or all failed ones.
#[utoipa::path(
    post, path = "/api/queue/retry", tag = "queue", request_body = Request,
    params(IdempotencyKey),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn retry(
    State(app): State<App>,
    _: NoQuery,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer<Response> {
    let request: Request = body::read(&body)?;
    let project = request.project_id.as_deref().ok_or_else(|| Error::missing("projectId"))?;
    let project = ids::id("projectId", project)?;
    let all = request.retry_all.unwrap_or(false);
    let job = match (&request.job_id, all) {
        (Some(_), true) => return Err(Error::invalid("jobId and retryAll exclude each other")),
        (None, false) => return Err(Error::missing("jobId, or retryAll: true,")),
        (Some(job), false) => Some(ids::job_id("jobId", job)?),
        (None, true) => None,
    };
    let key = Key::read(&headers, "retry", &project, &body)?;
    let idempotency = key.map(|key| key.idempotency);
    let ask = Retry { project: project.clone(), job, idempotency };
    let submitted = match app.submitter.submit(Verb::Retry, ask).await {
        Ok(submitted) => submitted,
        Err(error) => return Err(explain(&app, error, &project, job).await),
    };
    match submitted {
        Submitted::Durable => accepted(Response {
            success: true,
            retried_count: None,
            job_ids: None,
            message: DURABLE.to_owned(),
        }),
        Submitted::Processed(Reply::Retried { jobs, count: retried, left }) => {
            let mut message = format!("queued {} again", count(retried, "job", "jobs"));
            if left > 0 {
                let left = count(left, "failed job was", "failed jobs were");
                message.push_str(&format!(
                    "; {left} left: superseded by a newer job, or past retention"
                ));
            }
            ok(Response {
                success: true,
                retried_count: Some(retried),
                job_ids: Some(jobs),
                message,
            })
        }
        Submitted::Processed(_) => Err(Error::internal("retry was answered with another reply")),
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
