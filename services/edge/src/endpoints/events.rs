//! GET /api/queue/events: changes of jobs as server-sent events.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Uri},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use job::{Id, JobId, Position};

use crate::{
    app::App,
    body,
    error::Error,
    events::{Filter, Subscription},
    ids,
    keys::{Access, TICKET_PARAMETER},
    openapi::QuestionError,
};

/// Streams changes of jobs: of all, of a project, of a batch, or of one job.
#[utoipa::path(
    get, path = "/api/queue/events", tag = "queue", operation_id = "events",
    params(
        ("projectId" = Option<String>, Query, min_length = 1, max_length = 128),
        ("batchId" = Option<String>, Query, description = "With its project.", min_length = 1, max_length = 128),
        ("jobId" = Option<uuid::Uuid>, Query),
        ("after" = Option<String>, Query, description = "The position to resume behind.", pattern = "^[0-9]{1,19}[.][0-9]{1,10}$"),
        ("ticket" = Option<String>, Query, description = "Instead of an API key, see createTicket.", pattern = "^jt_[0-9A-Za-z]+_[0-9]{1,15}_[0-9a-f]{64}$"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen: takes precedence over `after`.", pattern = "^[0-9]{1,19}[.][0-9]{1,10}$"),
    ),
    responses((status = 200, description = "Changes of jobs, as they happen.", body = String, content_type = "text/event-stream"), QuestionError),
)]
pub(crate) async fn stream(
    State(app): State<App>,
    access: Access,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let [project, batch, job, after, _] =
        body::query(&uri, ["projectId", "batchId", "jobId", "after", TICKET_PARAMETER])?;
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    let batch = batch.map(|id| ids::id("batchId", &id)).transpose()?;
    let job = job.map(|id| ids::job_id("jobId", &id)).transpose()?;
    access.project_or_all(project.as_ref())?;
    access.content("events, which contain progress")?;
    let permits = app.waiting.enter(&access, project.as_ref())?;
    let filter = filter(project, batch, job)?;
    let subscription = Subscription::new(app.feed.clone(), filter, cursor(&headers, after)?);
    let chunks = subscription.into_chunks().map(Ok::<Bytes, Infallible>);
    // A stream ends with its key.
    let chunks = chunks.take_until(async move {
        access.ended().await;
        drop(permits);
    });
    let headers = super::event_stream_headers();
    Ok((headers, Body::from_stream(chunks)).into_response())
}

/// The position of the last event that the client has: `Last-Event-ID`, else `after`.
fn cursor(headers: &HeaderMap, after: Option<String>) -> Result<Option<Position>, Error> {
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?").to_owned());
    let name = if last.is_some() { "Last-Event-ID" } else { "after" };
    let cursor = last.or(after).filter(|id| !id.is_empty());
    let cursor = cursor.map(|id| id.parse::<Position>()).transpose();
    cursor.map_err(|error| Error::invalid(format!("{name}: {error}")))
}

/// Which events the client receives.
fn filter(project: Option<Id>, batch: Option<Id>, job: Option<JobId>) -> Result<Filter, Error> {
    Ok(match (project, batch, job) {
        (_, Some(_), Some(_)) => {
            return Err(Error::invalid("batchId and jobId exclude each other"));
        }
        (None, Some(_), _) => return Err(Error::missing("projectId, with batchId,")),
        (project, None, Some(job)) => Filter::Job(job, project),
        (Some(project), Some(batch), None) => Filter::Batch(project, batch),
        (Some(project), None, None) => Filter::Project(project),
        (None, None, None) => Filter::All,
    })
}
