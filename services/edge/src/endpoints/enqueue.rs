//! POST /api/queue/enqueue: new jobs, which supersede the active jobs of their batches.

use std::collections::{HashMap, HashSet};

use axum::extract::State;
use job::{
    Backoff, Id, JobId, JobType, Json,
    bounds::{self, BATCHES_MAX, DataError},
    command::{Enqueue, NewJob},
    json::{self, Unrepresentable},
    reply::Reply,
    time::Millis,
};
use nats::names::Verb;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, CommandRequest, DURABLE, NamesProject},
    count, expires_in, max_attempts, priority, time,
};
use crate::{
    app::App,
    body::ITEMS_MAX,
    error::Error,
    ids::{self, Key},
    openapi::{IdempotencyKey, When},
};

/// The priority of a request that names none.
const PRIORITY_DEFAULT: u16 = 10;

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = EnqueueRequest)]
struct Request<'a> {
    /// One batch; `batchId` or `batchIds` must be there.
    #[schema(min_length = 1, max_length = 128)]
    batch_id: Option<String>,
    /// Many batches, at most 10,000.
    #[schema(min_items = 1, max_items = 10_000)]
    batch_ids: Option<Vec<String>>,
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    project_id: Option<String>,
    /// Lower first; 10 where absent.
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1_000)]
    priority: Option<serde_json::Number>,
    /// What the handler is given, at most 256 KB; with `batchIds` an object keyed by batch id.
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    data: Option<&'a RawValue>,
    /// Not to be run before this time.
    #[schema(value_type = Option<When>)]
    run_at: Option<String>,
    /// Seconds that it may wait, from now or from `runAt` on, before it is canceled.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 316_224_000)]
    expires_in: Option<serde_json::Number>,
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    max_attempts: Option<serde_json::Number>,
    retry: Option<Backoff>,
    #[schema(pattern = "^process_batch$")]
    r#type: Option<String>,
}

impl NamesProject for Request<'_> {
    fn project_id(&self) -> Option<&str> {
        self.project_id.as_deref()
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Enqueued)]
pub(crate) struct Response {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    job_id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<uuid::Uuid>>)]
    job_ids: Option<Vec<JobId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canceled_count: Option<u64>,
    message: String,
}

/// Enqueues one or many batches.
#[utoipa::path(
    post, path = "/api/queue/enqueue", tag = "queue", request_body = Request,
    params(IdempotencyKey),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn enqueue(State(app): State<App>, command: CommandRequest) -> Answer<Response> {
    let (request, project, key) = command.read::<Request<'_>>(Verb::Enqueue)?;
    let batches = batches(&request)?;
    let data = data(&request, &batches)?;
    let jobs = new_jobs(&batches, data, key.as_ref());
    let one = request.batch_id.is_some().then(|| jobs[0].id);
    let many = request.batch_ids.is_some().then(|| jobs.iter().map(|job| job.id).collect());
    let created = jobs.len() as u64;
    if let Some(retry) = &request.retry {
        retry.check("retry").map_err(Error::invalid)?;
    }
    let ask = Enqueue {
        project,
        job_type: JobType::ProcessBatch,
        priority: priority(request.priority.as_ref(), PRIORITY_DEFAULT)?,
        run_at: run_at(request.run_at.as_deref())?,
        expires_in: expires_in(request.expires_in.as_ref())?,
        max_attempts: max_attempts(request.max_attempts.as_ref())?,
        retry: request.retry,
        supersede: true,
        jobs,
        idempotency: key.map(|key| key.idempotency),
        trace: command.trace(),
    };
    if app.is_full() {
        return Err(Error::queue_full());
    }
    let respond = |reply| {
        let (canceled_count, message) = match reply {
            None => (None, DURABLE.to_owned()),
            Some(Reply::Enqueued { canceled }) => {
                let mut message = format!("enqueued {}", count(created, "job", "jobs"));
                if canceled > 0 {
                    let canceled = count(canceled, "job", "jobs");
                    message.push_str(&format!(", canceled {canceled} of the same batches"));
                }
                (Some(canceled), message)
            }
            Some(_) => return None,
        };
        Some(Response { success: true, job_id: one, job_ids: many, canceled_count, message })
    };
    command::submit(&app, Verb::Enqueue, ask, respond).await
}

/// The batches of a request, each once, `batchId` first.
fn batches(request: &Request<'_>) -> Result<Vec<Id>, Error> {
    if let Some(job_type) = &request.r#type
        && job_type != JobType::ProcessBatch.name()
    {
        return Err(Error::invalid("type must be process_batch"));
    }
    let listed = request.batch_ids.as_deref().unwrap_or_default();
    if request.batch_ids.is_some() && listed.is_empty() {
        return Err(Error::invalid("batchIds must not be empty"));
    }
    if request.batch_id.is_none() && listed.is_empty() {
        return Err(Error::missing("batchId or batchIds"));
    }
    let mut batches = Vec::new();
    let mut seen = HashSet::new();
    if let Some(one) = &request.batch_id {
        let id = ids::id("batchId", one)?;
        seen.insert(id.clone());
        batches.push(id);
    }
    for (index, batch) in listed.iter().enumerate() {
        let id = ids::id(&format!("batchIds[{index}]"), batch)?;
        if seen.insert(id.clone()) {
            batches.push(id);
        }
    }
    if batches.len() > BATCHES_MAX {
        let n = batches.len();
        return Err(Error::too_large(format!(
            "batchIds names {n} batches, at most {BATCHES_MAX} are allowed"
        )));
    }
    Ok(batches)
}

/// The data of each batch: with `batchIds` an object keyed by batch, else the object itself.
fn data(request: &Request<'_>, batches: &[Id]) -> Result<HashMap<Id, Json>, Error> {
    let Some(data) = request.data else { return Ok(HashMap::new()) };
    if request.batch_ids.is_none() {
        return Ok(HashMap::from([(
            batches[0].clone(),
            object("data", Json::from(data.to_owned()))?,
        )]));
    }
    if !data.get().starts_with('{') {
        return Err(Error::invalid("data must be an object keyed by batch id"));
    }
    let named: HashMap<&str, &Id> = batches.iter().map(|batch| (&**batch, batch)).collect();
    let mut of = HashMap::with_capacity(batches.len());
    for (index, (batch, value)) in json::members(data).enumerate() {
        if index >= ITEMS_MAX {
            return Err(Error::too_large(format!("data has more than {ITEMS_MAX} items")));
        }
        let Some(named) = named.get(&*batch) else {
            return Err(Error::invalid(format!(
                "data names batch {batch:?}, which batchIds does not"
            )));
        };
        let unrepresentable = |error: Unrepresentable| {
            Error::invalid(error.within(&format!("data[{batch:?}]")).to_string())
        };
        let value = value.map_err(unrepresentable)?;
        bounds::data_size(format_args!("data[{batch:?}]"), &value).map_err(refused)?;
        of.insert(Id::clone(named), value);
    }
    Ok(of)
}

/// Checks the data of a job.
pub(super) fn object(field: &str, json: Json) -> Result<Json, Error> {
    bounds::data(field, &json).map_err(refused)?;
    Ok(json)
}

fn refused(error: DataError) -> Error {
    match error {
        DataError::Invalid(text) => Error::invalid(text),
        DataError::TooLarge(text) => Error::too_large(text),
    }
}

fn new_jobs(batches: &[Id], mut data: HashMap<Id, Json>, key: Option<&Key>) -> Vec<NewJob> {
    let mut jobs = Vec::with_capacity(batches.len());
    for batch in batches {
        let data = data.remove(batch).unwrap_or_default();
        jobs.push(NewJob { id: ids::new_job(key, batch), batch: batch.clone(), data });
    }
    jobs
}

fn run_at(value: Option<&str>) -> Result<Option<Millis>, Error> {
    let Some(value) = value else { return Ok(None) };
    time("runAt", value).map(Some)
}

/// Reads a body, for fuzz/.
#[cfg(fuzzing)]
pub(crate) fn try_read(data: &[u8]) {
    let _ = crate::body::read::<Request<'_>>(data);
}
