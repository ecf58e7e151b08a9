//! PATCH /api/queue/failures/{errorGroup}: mutes, resolves or opens a group.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
};
use nats::{
    api_keys::KeyRecord,
    failure_marks::{self, FailureMark, Marked},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    app::App,
    audit::AuditNote,
    body::{self, Body},
    endpoints::{Answer, named, ok, parameters::error_group},
    error::Error,
    ids,
    keys::Access,
};

/// The names of marks.
const MARKS: [FailureMark; 3] = [FailureMark::Open, FailureMark::Muted, FailureMark::Resolved];

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = FailureUpdate)]
pub(crate) struct Request {
    /// `muted`: no longer listed as active; `resolved`: not until it is seen again; `open`: listed.
    #[schema(value_type = FailureMark)]
    status: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = FailureUpdated)]
pub(crate) struct Response {
    success: bool,
    message: String,
}

/// Mutes, resolves or opens a group of errors, for one project or all. Jobs are not changed, and counts include them.
#[utoipa::path(
    patch, path = "/api/queue/failures/{errorGroup}", tag = "queue", request_body = Request,
    params(
        ("errorGroup" = String, Path, pattern = "^[0-9a-fA-F]{16}$"),
        ("projectId" = Option<String>, Query, description = "All projects if absent, which needs a key for all.", min_length = 1, max_length = 128),
    ),
    responses((status = 200, description = "Done.", body = Response), Error),
)]
pub(crate) async fn mark_failure(
    State(app): State<App>,
    access: Access,
    note: AuditNote,
    uri: Uri,
    group: Result<Path<String>, PathRejection>,
    Body(body): Body,
) -> Answer<Response> {
    let [project] = body::query(&uri, ["projectId"])?;
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    access.project_or_all(project.as_ref())?;
    let Path(text) = group.map_err(|_| Error::invalid("errorGroup must be in the path"))?;
    let group = error_group(&text)?;
    let Request { status } = body::read(&body)?;
    let mark = named("status", &status, &MARKS, |mark| match mark {
        FailureMark::Open => "open",
        FailureMark::Muted => "muted",
        FailureMark::Resolved => "resolved",
    })?;
    project.iter().for_each(|project| note.project(project));
    note.target(format!("error group {text}: {status}"));
    let by = access.key_record().map(|KeyRecord { name, .. }| name.clone());
    let marked = Marked { mark, at: service::now_ms(), by };
    match app.marks.set(project.as_ref(), group, marked).await {
        Ok(()) => {
            ok(Response { success: true, message: format!("error group {text} is {status}") })
        }
        Err(error @ failure_marks::Error::TooMany) => Err(Error::too_many_marks(error.to_string())),
        Err(error) => {
            tracing::warn!(%error, "error group not marked");
            Err(Error::unanswered())
        }
    }
}
