//! POST /api/queue/redo: a job for some columns of one row. All its fields become the job's data.

use std::collections::BTreeMap;

use axum::extract::State;
use job::{
    JobId, JobType, Json,
    bounds::DATA_BYTES_MAX,
    command::{Enqueue, NewJob},
    reply::Reply,
};
use nats::names::Verb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, CommandRequest, DURABLE, NamesProject},
    integer, priority,
};
use crate::{app::App, error::Error, ids, openapi::IdempotencyKey};

/// The priority of a request that names none.
const PRIORITY_DEFAULT: u16 = 5;

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = RedoRequest)]
struct Request {
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    batch_id: Option<String>,
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    project_id: Option<String>,
    #[schema(value_type = u64, required = true)]
    row_index: Option<serde_json::Number>,
    #[schema(value_type = Vec<String>, required = true, min_items = 1)]
    redo_column_ids: Option<Vec<String>>,
    #[schema(value_type = BTreeMap<String, String>, required = true)]
    cropped_image_ids: Option<BTreeMap<String, String>>,
    source_image_ids: Option<BTreeMap<String, String>>,
    /// Lower first; 5 where absent.
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1_000)]
    priority: Option<serde_json::Number>,
}

impl NamesProject for Request {
    fn project_id(&self) -> Option<&str> {
        self.project_id.as_deref()
    }
}

/// What the handler is given.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    batch_id: &'a str,
    project_id: &'a str,
    row_index: u64,
    redo_column_ids: &'a [String],
    cropped_image_ids: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_image_ids: Option<&'a BTreeMap<String, String>>,
    priority: u16,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RedoEnqueued)]
pub(crate) struct Response {
    success: bool,
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    message: String,
}

/// Enqueues the redo of a row.
#[utoipa::path(
    post, path = "/api/queue/redo", tag = "queue", request_body = Request,
    params(IdempotencyKey),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn redo(State(app): State<App>, command: CommandRequest) -> Answer<Response> {
    let (request, project, key) = command.read::<Request>(Verb::Redo)?;
    let batch = request.batch_id.as_deref().ok_or_else(|| Error::missing("batchId"))?;
    let batch = ids::id("batchId", batch)?;
    let priority = priority(request.priority.as_ref(), PRIORITY_DEFAULT)?;
    let data = data(&request, &project, &batch, priority)?;
    let id = ids::new_job(key.as_ref(), &batch);
    let ask = Enqueue {
        project,
        job_type: JobType::ProcessRedo,
        priority,
        run_at: None,
        expires_in: None,
        max_attempts: None,
        retry: None,
        supersede: false,
        jobs: vec![NewJob { id, batch, data }],
        idempotency: key.map(|key| key.idempotency),
        trace: command.trace(),
    };
    if app.is_full() {
        return Err(Error::queue_full());
    }
    let respond = |reply| {
        let message = match reply {
            None => DURABLE,
            Some(Reply::Enqueued { .. }) => "enqueued 1 redo job",
            Some(_) => return None,
        };
        Some(Response { success: true, job_id: id, message: message.to_owned() })
    };
    command::submit(&app, Verb::Redo, ask, respond).await
}

fn data(request: &Request, project: &str, batch: &str, priority: u16) -> Result<Json, Error> {
    let row = request.row_index.as_ref().ok_or_else(|| Error::missing("rowIndex"))?;
    let row_index =
        integer(row).ok_or_else(|| Error::invalid("rowIndex must be an integer from 0 on"))?;
    let columns = request.redo_column_ids.as_deref();
    let columns = columns.ok_or_else(|| Error::missing("redoColumnIds"))?;
    if columns.is_empty() {
        return Err(Error::invalid("redoColumnIds must not be empty"));
    }
    for (index, column) in columns.iter().enumerate() {
        ids::id(&format!("redoColumnIds[{index}]"), column)?;
    }
    let cropped = request.cropped_image_ids.as_ref();
    let data = Data {
        batch_id: batch,
        project_id: project,
        row_index,
        redo_column_ids: columns,
        cropped_image_ids: cropped.ok_or_else(|| Error::missing("croppedImageIds"))?,
        source_image_ids: request.source_image_ids.as_ref(),
        priority,
    };
    let json = Json::of(&data).map_err(|_| Error::internal("redo data is not JSON"))?;
    let bytes = json.get().len();
    if bytes > DATA_BYTES_MAX {
        let text =
            format!("the fields have {bytes} bytes as data, at most {DATA_BYTES_MAX} are allowed");
        return Err(Error::too_large(text));
    }
    Ok(json)
}
