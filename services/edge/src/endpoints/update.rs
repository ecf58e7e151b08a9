//! PATCH /api/queue/jobs/{jobId}: another priority, time or expiry for a queued job.

use axum::extract::{Path, State, rejection::PathRejection};
use job::{command::Update, reply::Reply};
use nats::names::Verb;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, DURABLE},
    expires_in, priority, status, time,
};
use crate::{
    app::App,
    audit::AuditNote,
    body::{self, Body, NoQuery},
    error::Error,
    ids,
    keys::Access,
};

/// What changes; a field that is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = JobUpdate)]
pub(crate) struct Request {
    /// The new priority, lower first.
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1000)]
    priority: Option<serde_json::Number>,
    /// The job does not run before this time; null removes the time.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<crate::openapi::When>)]
    run_at: Option<Option<String>>,
    /// Seconds that the job may wait, from now or from its `runAt` on, before it is canceled; null: it does not expire.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 316_224_000)]
    expires_in: Option<Option<serde_json::Number>>,
}

/// Tells null from an absent field.
fn some<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[derive(Serialize, ToSchema)]
#[schema(as = JobUpdated)]
pub(crate) struct Response {
    success: bool,
    message: String,
}

/// Changes a queued job. One that is already handed to a processor runs as it was; the new priority then counts from its next run.
#[utoipa::path(
    patch, path = "/api/queue/jobs/{jobId}", tag = "queue", request_body = Request,
    params(("jobId" = uuid::Uuid, Path)),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn update_job(
    State(app): State<App>,
    access: Access,
    note: AuditNote,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
    Body(body): Body,
) -> Answer<Response> {
    let Path(id) = id.map_err(|_| Error::invalid("jobId must be the UUID of a job"))?;
    let id = ids::job_id("jobId", &id)?;
    let request: Request = body::read(&body)?;
    let Request { priority: number, run_at, expires_in: wait } = &request;
    if number.is_none() && run_at.is_none() && wait.is_none() {
        return Err(Error::missing("priority, runAt or expiresIn"));
    }
    let new_priority = number.as_ref().map(|number| priority(Some(number), 0)).transpose()?;
    let run_at = match run_at {
        None => None,
        Some(None) => Some(0),
        Some(Some(text)) => Some(time("runAt", text)?),
    };
    let expires_in = match wait {
        None => None,
        Some(None) => Some(0),
        Some(seconds) => expires_in(seconds.as_ref())?,
    };
    let project = status::project_of(&app, &access, id).await?;
    note.project(&project);
    note.target(format!("job {id}"));
    let update = Update { project, job: id, priority: new_priority, run_at, expires_in };
    let respond = |reply| {
        let message = match reply {
            None => DURABLE.to_owned(),
            Some(Reply::Updated) => format!("changed job {id}"),
            Some(_) => return None,
        };
        Some(Response { success: true, message })
    };
    command::submit(&app, Verb::Update, update, respond).await
}
