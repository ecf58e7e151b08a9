//! POST /api/queue/cancel: stop the live jobs of a project, or of some of its batches.

use axum::{extract::State, http::HeaderMap};
use job::{bounds::BATCHES_MAX, command::Cancel, reply::Reply};
use nats::names::Verb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, DURABLE, accepted, count, ok};
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
#[schema(as = CancelRequest)]
struct Request {
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    project_id: Option<String>,
    /// All batches of the project where absent.
    #[schema(min_items = 1, max_items = 10_000)]
    batch_ids: Option<Vec<String>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Canceled)]
pub(crate) struct Response {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    canceled_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batches_reset: Option<u64>,
    message: String,
}

/// Cancels queued and running jobs.
#[utoipa::path(
    post, path = "/api/queue/cancel", tag = "queue", request_body = Request,
    params(IdempotencyKey),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    _: NoQuery,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer<Response> {
    let request: Request = body::read(&body)?;
    let project = request.project_id.as_deref().ok_or_else(|| Error::missing("projectId"))?;
    let project = ids::id("projectId", project)?;
    let key = Key::read(&headers, "cancel", &project, &body)?;
    let mut batches = None;
    if let Some(listed) = &request.batch_ids {
        // An empty list must not be read as "all": that would stop a whole project by mistake.
        if listed.is_empty() {
            return Err(Error::invalid(
                "batchIds must not be empty; leave it out to cancel all batches",
            ));
        }
        if listed.len() > BATCHES_MAX {
            let n = listed.len();
            return Err(Error::too_large(format!(
                "batchIds names {n} batches, at most {BATCHES_MAX} are allowed"
            )));
        }
        let checked = listed.iter().enumerate();
        let checked = checked.map(|(index, batch)| ids::id(&format!("batchIds[{index}]"), batch));
        batches = Some(checked.collect::<Result<Vec<_>, _>>()?);
    }
    let ask = Cancel { project, batches, idempotency: key.map(|key| key.idempotency) };
    match app.submitter.submit(Verb::Cancel, ask).await? {
        Submitted::Durable => accepted(Response {
            success: true,
            canceled_count: None,
            batches_reset: None,
            message: DURABLE.to_owned(),
        }),
        Submitted::Processed(Reply::Canceled { jobs, batches }) => ok(Response {
            success: true,
            canceled_count: Some(jobs),
            batches_reset: Some(batches),
            message: format!(
                "canceled {} of {}",
                count(jobs, "job", "jobs"),
                count(batches, "batch", "batches")
            ),
        }),
        Submitted::Processed(_) => Err(Error::internal("cancel was answered with another reply")),
    }
}
