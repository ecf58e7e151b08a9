//! /api/projects/{projectId}/deliveries: deliveries to a project's webhook that wait or were given up, and another try.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
};
use job::{
    Id, Job, JobFilter, JobId, Status, bounds::OPERATION_JOBS_MAX, command::Retry, reply::Reply,
};
use nats::{
    names::{self, Verb},
    query::{DeliveriesAnswer, DeliveriesQuery},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, CommandRequest, DURABLE},
    count, named, ok, page_limit, projects, skip, status,
};
use crate::{
    app::App,
    body,
    error::Error,
    ids,
    keys::Access,
    openapi::{IdempotencyKey, QuestionError},
    view::Time,
};

/// Which deliveries are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeliveryStatus {
    /// It waits for its next attempt, or is under way.
    Pending,
    /// It was given up.
    Failed,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeliveryList)]
pub(crate) struct Listed {
    success: bool,
    deliveries: Vec<View>,
    /// The start of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A delivery of the end of a job.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Delivery)]
struct View {
    /// The `webhook-id` that the receiver sees.
    #[schema(value_type = uuid::Uuid)]
    delivery_id: JobId,
    status: DeliveryStatus,
    /// What it reports, such as `job.completed`.
    r#type: String,
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    #[schema(value_type = String)]
    batch_id: Id,
    attempts: u32,
    max_attempts: u32,
    created_at: Time,
    /// When it is tried next; absent if it is under way or was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::openapi::When>)]
    next_attempt_at: Option<Time>,
    /// When its last attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::openapi::When>)]
    last_attempt_at: Option<Time>,
    /// The error of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: Option<Id>,
}

/// The part of a delivery's body that is shown.
#[derive(Deserialize)]
struct Payload {
    r#type: String,
    data: Content,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    job_id: JobId,
    batch_id: Id,
}

impl View {
    fn new(job: &Job) -> Option<Self> {
        let payload: Payload = serde_json::from_str(job.data.get()).ok()?;
        let history = job.history();
        let is_failed = job.status == Status::Failed;
        Some(Self {
            delivery_id: job.id,
            status: if is_failed { DeliveryStatus::Failed } else { DeliveryStatus::Pending },
            r#type: payload.r#type,
            job_id: payload.data.job_id,
            batch_id: payload.data.batch_id,
            attempts: job.attempts,
            max_attempts: job.max_attempts,
            created_at: Time(job.created_at),
            next_attempt_at: job.run_at.map(Time),
            last_attempt_at: history
                .timeline
                .iter()
                .rev()
                .find_map(|step| (step.status == Status::Processing).then_some(Time(step.at))),
            error: history.error.clone(),
        })
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = DeliveryRetryRequest)]
pub(crate) struct Request {
    /// All that were given up if absent.
    #[schema(value_type = Option<Vec<uuid::Uuid>>, min_items = 1, max_items = 1_000)]
    delivery_ids: Option<Vec<String>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeliveriesRetried)]
pub(crate) struct Retried {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retried_count: Option<u64>,
    message: String,
}

/// Lists deliveries to the webhook of a project: those that wait, in no particular order, or those that were given up in
/// the last three days, the last one first.
#[utoipa::path(
    get, path = "/api/projects/{projectId}/deliveries", tag = "projects",
    params(
        ("projectId" = String, Path, min_length = 1, max_length = 128),
        ("status" = Option<DeliveryStatus>, Query, description = "`failed` if absent."),
        ("limit" = Option<u32>, Query, description = "50 if absent.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before."),
    ),
    responses((status = 200, description = "As it is now.", body = Listed), QuestionError),
)]
pub(crate) async fn list_deliveries(
    State(app): State<App>,
    access: Access,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Listed> {
    let project = projects::project_id(&access, id)?;
    let [status, limit, cursor] = body::query(&uri, ["status", "limit", "cursor"])?;
    let all = [DeliveryStatus::Pending, DeliveryStatus::Failed];
    let name = |status| match status {
        DeliveryStatus::Pending => "pending",
        DeliveryStatus::Failed => "failed",
    };
    let status = status.map(|text| named("status", &text, &all, name)).transpose()?;
    let is_failed = status != Some(DeliveryStatus::Pending);
    let (limit, skip) = (page_limit(limit.as_deref())?, skip(cursor.as_deref())?);
    let query = DeliveriesQuery { project, is_failed, skip, limit };
    let answer = app.ask_state(names::QUERY_DELIVERIES, &query).await;
    let DeliveriesAnswer { mut jobs, unread, total } = answer.map_err(|error| {
        tracing::warn!(%error, "deliveries without state");
        Error::away("state", "deliveries cannot be read at the moment; send the request again")
    })?;
    status::read_terminal(&app, &unread, |job| jobs.push(job)).await?;
    jobs.sort_by_key(|job| std::cmp::Reverse(job.history().completed_at));
    let next = skip + limit;
    let next_cursor = (next < total).then(|| next.to_string());
    let deliveries = jobs.iter().filter_map(View::new).collect();
    ok(Listed { success: true, deliveries, next_cursor })
}

/// Makes deliveries again that were given up: their attempts start at 0.
#[utoipa::path(
    post, path = "/api/projects/{projectId}/deliveries/retry", tag = "projects", request_body = Request,
    params(("projectId" = String, Path, min_length = 1, max_length = 128), IdempotencyKey),
    responses((status = 200, description = "Done.", body = Retried), (status = 202, description = "Durable, and not confirmed yet.", body = Retried), Error),
)]
pub(crate) async fn retry_deliveries(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
    command: CommandRequest,
) -> Answer<Retried> {
    let project = projects::project_id(command.access(), id)?;
    let request: Request = command.body()?;
    let listed = request.delivery_ids.as_deref();
    let jobs = listed
        .map(|listed| ids::uuids("deliveryIds", listed, OPERATION_JOBS_MAX, "a delivery"))
        .transpose()?;
    command.note_target(match &jobs {
        Some(jobs) => count(jobs.len() as u64, "delivery", "deliveries"),
        None => "all failed deliveries".to_owned(),
    });
    let scope = format!("deliveries {project}");
    let key = command.idempotency(Verb::Retry, &scope)?;
    let idempotency = key.map(|key| key.idempotency);
    let filter = JobFilter { jobs, ..JobFilter::default() };
    let retry = Retry { project, job: None, filter, deliveries: true, idempotency };
    let respond = |reply| match reply {
        None => Some(Retried { success: true, retried_count: None, message: DURABLE.to_owned() }),
        Some(Reply::Retried { count: retried, .. }) => {
            let message = match retried {
                0 => "no delivery that was given up matches".to_owned(),
                _ => format!("queued {} again", count(retried, "delivery", "deliveries")),
            };
            Some(Retried { success: true, retried_count: Some(retried), message })
        }
        Some(_) => None,
    };
    command::submit(&app, Verb::Retry, retry, respond).await
}
