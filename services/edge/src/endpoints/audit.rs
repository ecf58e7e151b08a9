//! GET /api/audit: the changes that were requested over HTTP, the last one first.

use axum::{extract::State, http::Uri};
use job::{Id, time::Millis};
use nats::{
    audit::AuditRecord,
    names,
    query::{AuditAnswer, AuditQuery},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Answer, PATIENCE, ok, page_limit};
use crate::{app::App, body, error::Error, ids, keys::Access, openapi::QuestionError, view::Time};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditPage)]
pub(crate) struct Response {
    success: bool,
    records: Vec<View>,
    /// The start of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A request that changed something, or tried to.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditRecord)]
struct View {
    id: Uuid,
    /// When it was answered.
    #[schema(value_type = crate::openapi::When)]
    at: Time,
    request_id: String,
    /// Its API key; absent if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    /// The name of that key at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_name: Option<String>,
    /// The address of the client.
    address: String,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
    /// What it changes, if the path does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The status of the answer.
    status: u16,
    /// The header `Jobmesh-Reason` of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<AuditRecord> for View {
    fn from(record: AuditRecord) -> Self {
        Self {
            id: record.id,
            at: Time(record.at),
            request_id: record.request_id,
            key_id: record.key_id,
            key_name: record.key_name,
            address: record.address,
            method: record.method,
            path: record.path,
            project_id: record.project,
            target: record.target,
            status: record.status,
            reason: record.reason,
        }
    }
}

/// Lists the changes of all projects, or of one: cancels, retries, settings, schedules and API keys. A change is listed
/// about a second after it was made.
#[utoipa::path(
    get, path = "/api/audit", tag = "operators",
    params(
        ("projectId" = Option<String>, Query, description = "All projects where absent.", min_length = 1, max_length = 128),
        ("keyId" = Option<String>, Query, description = "All API keys where absent."),
        ("limit" = Option<u32>, Query, description = "50 where absent.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before."),
    ),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn list_changes(
    State(app): State<App>,
    access: Access,
    uri: Uri,
) -> Answer<Response> {
    let [project, key, limit, cursor] =
        body::query(&uri, ["projectId", "keyId", "limit", "cursor"])?;
    access.project_or_all(None)?;
    let project: Option<Id> = project.map(|id| ids::id("projectId", &id)).transpose()?;
    let before = cursor.as_deref().map(|text| {
        let invalid = || Error::invalid("cursor must be the nextCursor of an answer");
        read_cursor(text).ok_or_else(invalid)
    });
    let query = AuditQuery {
        project: project.map(|id| id.to_string()),
        key,
        before: before.transpose()?,
        limit: page_limit(limit.as_deref())?,
    };
    let answer = app.broker.query(names::QUERY_AUDIT, &query, PATIENCE * 5).await;
    let answer: AuditAnswer = answer.map_err(|error| {
        tracing::warn!(%error, "no audit log");
        Error::away("metrics", "metrics does not answer, or ClickHouse does not answer it")
    })?;
    ok(Response {
        success: true,
        records: answer.records.into_iter().map(View::from).collect(),
        next_cursor: answer.next.map(|(at, id)| format!("{at}-{}", id.simple())),
    })
}

fn read_cursor(text: &str) -> Option<(Millis, Uuid)> {
    let (at, id) = text.split_once('-')?;
    Some((at.parse().ok()?, id.parse().ok()?))
}
