//! POST /api/queue/cancel: stop the live jobs of a project, or of some of its batches.

use axum::extract::State;
use job::{bounds::BATCHES_MAX, command::Cancel, reply::Reply};
use nats::names::Verb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, CommandRequest, DURABLE, NamesProject},
    count,
};
use crate::{app::App, error::Error, ids, openapi::IdempotencyKey};

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

impl NamesProject for Request {
    fn project_id(&self) -> Option<&str> {
        self.project_id.as_deref()
    }
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
pub(crate) async fn cancel(State(app): State<App>, command: CommandRequest) -> Answer<Response> {
    let (request, project, key) = command.read::<Request>(Verb::Cancel)?;
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
    command.note_target(match &batches {
        None => "all batches".to_owned(),
        Some(batches) if batches.len() == 1 => format!("batch {}", batches[0]),
        Some(batches) => count(batches.len() as u64, "batch", "batches"),
    });
    let ask = Cancel { project, batches, idempotency: key.map(|key| key.idempotency) };
    let response = |canceled_count, batches_reset, message| {
        Some(Response { success: true, canceled_count, batches_reset, message })
    };
    let respond = |reply| match reply {
        None => response(None, None, DURABLE.to_owned()),
        Some(Reply::Canceled { jobs, batches }) => {
            let (of_jobs, of_batches) =
                (count(jobs, "job", "jobs"), count(batches, "batch", "batches"));
            response(Some(jobs), Some(batches), format!("canceled {of_jobs} of {of_batches}"))
        }
        Some(_) => None,
    };
    command::submit(&app, Verb::Cancel, ask, respond).await
}
