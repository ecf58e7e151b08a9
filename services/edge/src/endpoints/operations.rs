//! /api/queue/operations: changes of many jobs that are previewed, started, followed and aborted.

mod filter;
mod preview;
mod view;

use axum::extract::{Path, State, rejection::PathRejection};
use axum::http::Uri;
use job::{
    Id,
    bounds::REASON_BYTES_MAX,
    command::{AbortOperation, OperationCommand, StartOperation},
    operation::{Operation, OperationAction, OperationStatus},
    reply::Reply,
};
use nats::{
    names::{self, Verb},
    query::{OperationsAnswer, OperationsQuery},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Answer,
    command::{self, CommandRequest},
    ok, page_limit, priority, skip,
};
use crate::{
    app::App,
    audit::AuditNote,
    body::{self, NoQuery},
    error::Error,
    ids,
    keys::Access,
    openapi::{IdempotencyKey, QuestionError},
    view::JobView,
};
use filter::Filter;
use preview::ProjectCount;
use view::View;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationAction)]
pub(super) enum Action {
    /// Queue failed jobs again.
    Retry,
    /// Cancel queued and running jobs.
    Cancel,
    /// Cancel queued jobs, as if they had expired. Running jobs continue.
    Expire,
    /// Change the priority of queued jobs. A job that is already handed to a processor keeps its place.
    SetPriority,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = OperationRequest)]
struct Request {
    #[schema(required = true)]
    action: Option<Action>,
    /// With `setPriority`: the new priority, lower first.
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1000)]
    priority: Option<serde_json::Number>,
    /// Which jobs.
    #[schema(required = true)]
    filter: Option<Filter>,
    /// Must be true if the filter names no project, unless it is a dry run.
    #[serde(default)]
    all_projects: bool,
    /// Only count what would change.
    #[serde(default)]
    dry_run: bool,
    /// Why, for the list of operations and the audit log.
    #[schema(max_length = 500)]
    reason: Option<String>,
}

impl Request {
    fn action(&self) -> Result<OperationAction, Error> {
        let action = self.action.ok_or_else(|| Error::missing("action"))?;
        match (action, &self.priority) {
            (Action::SetPriority, None) => Err(Error::missing("priority")),
            (Action::SetPriority, number) => {
                Ok(OperationAction::SetPriority { priority: priority(number.as_ref(), 0)? })
            }
            (_, Some(_)) => Err(Error::invalid("priority goes with the action setPriority only")),
            (Action::Retry, None) => Ok(OperationAction::Retry),
            (Action::Cancel, None) => Ok(OperationAction::Cancel),
            (Action::Expire, None) => Ok(OperationAction::Expire),
        }
    }

    fn reason(&self) -> Result<Option<Id>, Error> {
        let Some(reason) = &self.reason else { return Ok(None) };
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
            let text = format!("reason must have 1 to {REASON_BYTES_MAX} bytes");
            return Err(Error::invalid(text));
        }
        Ok(Some(reason.as_str().into()))
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationAnswer)]
pub(crate) struct Response {
    success: bool,
    /// The operation, as it stands; absent in an answer to a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<View>,
    /// What would change; only in an answer to a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<DryRun>,
}

/// What an operation would change now.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationDryRun)]
pub(super) struct DryRun {
    /// How many jobs match. A failed job is counted also if a newer job of its batch keeps it from being retried.
    jobs: u64,
    /// The same by project and status: the 100 largest numbers.
    counts: Vec<ProjectCount>,
    /// Five of the jobs at most.
    samples: Vec<JobView>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationList)]
pub(crate) struct Listed {
    success: bool,
    operations: Vec<View>,
    /// How many there are, on all pages.
    total: usize,
    /// The start of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Starts a change of all jobs that match, or counts them.
#[utoipa::path(
    post, path = "/api/queue/operations", tag = "queue", request_body = Request,
    params(IdempotencyKey),
    responses((status = 200, description = "Started, or counted.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn start_operation(
    State(app): State<App>,
    command: CommandRequest,
) -> Answer<Response> {
    let request: Request = command.body()?;
    let (action, reason) = (request.action()?, request.reason()?);
    let filter = request.filter.as_ref().ok_or_else(|| Error::missing("filter"))?;
    let access = command.access();
    let projects = filter.projects(access)?;
    let jobs = filter.jobs(action)?;
    if request.dry_run {
        command.note().changes_nothing();
        let dry_run = preview::preview(&app, access, action, projects, jobs).await?;
        return ok(Response { success: true, operation: None, dry_run: Some(dry_run) });
    }
    let names_none = filter.project_id.is_none() && filter.project_ids.is_none();
    if names_none != request.all_projects {
        return Err(Error::invalid(match names_none {
            true => "without filter.projectId or filter.projectIds, allProjects must be true",
            false => "allProjects goes with a filter that names no project",
        }));
    }
    let id = Uuid::now_v7();
    if let Some([project]) = projects.as_deref() {
        command.note().project(project);
    }
    command.note().reason(reason.as_deref());
    let key = command.idempotency(Verb::Operation, &scope_of(projects.as_deref()))?;
    let operation = Operation {
        reason,
        requested_by: access.key_record().map(|key| key.name.as_str().into()),
        ..Operation::new(id, action, projects, jobs)
    };
    let idempotency = key.map(|key| key.idempotency);
    // Without a reply its progress is not known.
    let unconfirmed = View::from(operation.clone());
    // Also a start that is not confirmed may happen.
    command.note().target(unconfirmed.audited());
    let start = StartOperation { operation, idempotency };
    let answer = submit(&app, OperationCommand::Start(Box::new(start)), Some(unconfirmed)).await?;
    // A repeat under the same key has the operation of the first request.
    if let Some(operation) = &answer.1.operation {
        command.note().target(operation.audited());
    }
    Ok(answer)
}

/// A text that differs for different lists of projects.
fn scope_of(projects: Option<&[Id]>) -> String {
    let Some(projects) = projects else { return String::new() };
    projects.iter().map(|project| format!("{}:{project}", project.len())).collect()
}

/// Lists operations: those in progress and the last that ended, the newest first.
#[utoipa::path(
    get, path = "/api/queue/operations", tag = "queue",
    params(
        ("limit" = Option<u32>, Query, description = "50 if absent.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before."),
    ),
    responses((status = 200, description = "As it is now.", body = Listed), QuestionError),
)]
pub(crate) async fn list_operations(
    State(app): State<App>,
    access: Access,
    uri: Uri,
) -> Answer<Listed> {
    let [limit, cursor] = body::query(&uri, ["limit", "cursor"])?;
    let (limit, skip) = (page_limit(limit.as_deref())?, skip(cursor.as_deref())?);
    let projects = access.visible(None)?;
    let query = OperationsQuery { projects, operation: None, skip, limit };
    let OperationsAnswer { operations, total } = ask(&app, &query).await?;
    let next = skip + operations.len();
    let next_cursor = (next < total && !operations.is_empty()).then(|| next.to_string());
    let operations = operations.into_iter().map(View::from).collect();
    ok(Listed { success: true, operations, total, next_cursor })
}

/// Shows an operation and how far it is.
#[utoipa::path(
    get, path = "/api/queue/operations/{operationId}", tag = "queue",
    params(("operationId" = uuid::Uuid, Path)),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn get_operation(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let id = operation_id(id)?;
    let projects = access.visible(None)?;
    let query = OperationsQuery { projects, operation: Some(id), skip: 0, limit: 1 };
    let found = ask(&app, &query).await?.operations.pop();
    let operation = found.ok_or_else(|| Error::operation_not_found(id))?;
    ok(Response { success: true, operation: Some(operation.into()), dry_run: None })
}

/// Stops an operation. Jobs that it has changed stay changed. A finished operation stays as it is.
#[utoipa::path(
    post, path = "/api/queue/operations/{operationId}/abort", tag = "queue",
    params(("operationId" = uuid::Uuid, Path)),
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn abort_operation(
    State(app): State<App>,
    access: Access,
    note: AuditNote,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let operation = operation_id(id)?;
    note.target(format!("operation {operation}"));
    let abort = AbortOperation {
        operation,
        projects: access.visible(None)?,
        requested_by: access.key_record().map(|key| key.name.as_str().into()),
    };
    submit(&app, OperationCommand::Abort(abort), None).await
}

async fn submit(
    app: &App,
    command: OperationCommand,
    unconfirmed: Option<View>,
) -> Answer<Response> {
    let response = |operation| Some(Response { success: true, operation, dry_run: None });
    let respond = |reply| match reply {
        None => response(unconfirmed),
        Some(Reply::Operation(operation)) => response(Some(View::from(*operation))),
        Some(_) => None,
    };
    command::submit(app, Verb::Operation, command, respond).await
}

async fn ask(app: &App, query: &OperationsQuery) -> Result<OperationsAnswer, Error> {
    app.ask_state(names::QUERY_OPERATIONS, query).await.map_err(|error| {
        tracing::warn!(%error, "operations without state");
        Error::away("state", "operations cannot be read at the moment; send the request again")
    })
}

fn operation_id(id: Result<Path<String>, PathRejection>) -> Result<Uuid, Error> {
    let id = id.map_or_else(|_| String::new(), |Path(id)| id);
    ids::uuid("operationId", &id, "an operation")
}
