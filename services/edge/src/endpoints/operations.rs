//! /api/queue/operations: changes of many jobs that are previewed, started, followed and aborted.

mod preview;
mod view;

use axum::extract::{Path, State, rejection::PathRejection};
use axum::http::Uri;
use job::{
    Id, JobFilter, JobId, JobType, Status,
    bounds::{OPERATION_JOBS_MAX, REASON_BYTES_MAX},
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
    named, ok, page_limit, parameters, priority, skip, time,
};
use crate::{
    app::App,
    audit::AuditNote,
    body::{self, NoQuery},
    error::Error,
    ids,
    keys::Access,
    openapi::{ClientJobType, IdempotencyKey, QuestionError},
    view::JobView,
};
use preview::ProjectCount;
use view::View;

/// Projects that one operation names.
const PROJECTS_MAX: usize = 100;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationAction)]
pub(super) enum Action {
    /// Queue failed jobs again.
    Retry,
    /// Cancel queued and running jobs.
    Cancel,
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

/// Selects jobs. Every field that is set must match.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = OperationFilter)]
struct Filter {
    /// All projects of the API key if `projectId` and `projectIds` are absent.
    #[schema(min_length = 1, max_length = 128)]
    project_id: Option<String>,
    /// The same for several projects.
    #[schema(min_items = 1, max_items = 100)]
    project_ids: Option<Vec<String>>,
    /// Only these jobs; their projects must be named.
    #[schema(value_type = Option<Vec<uuid::Uuid>>, min_items = 1, max_items = 1_000)]
    job_ids: Option<Vec<String>>,
    status: Option<String>,
    #[schema(value_type = Option<ClientJobType>)]
    r#type: Option<String>,
    #[schema(min_length = 1, max_length = 128)]
    batch_id: Option<String>,
    /// The processor that runs the job, or ran it last.
    #[schema(min_length = 1, max_length = 128)]
    processor: Option<String>,
    /// The group of the last error.
    #[schema(pattern = "^[0-9a-fA-F]{16}$")]
    error_group: Option<String>,
    /// Only jobs that were enqueued before this time.
    #[schema(value_type = Option<crate::openapi::When>)]
    created_before: Option<String>,
    /// With `retry`: only jobs that ended at this time or later.
    #[schema(value_type = Option<crate::openapi::When>)]
    from: Option<String>,
    /// With `retry`: only jobs that ended before this time.
    #[schema(value_type = Option<crate::openapi::When>)]
    to: Option<String>,
}

impl Filter {
    /// The projects, as far as the API key is for them.
    fn projects(&self, access: &Access) -> Result<Option<Vec<Id>>, Error> {
        let named = match (&self.project_id, &self.project_ids) {
            (Some(_), Some(_)) => {
                let text = "filter.projectId and filter.projectIds exclude each other";
                return Err(Error::invalid(text));
            }
            (None, None) if self.job_ids.is_some() => {
                let text = "filter.jobIds needs filter.projectId or filter.projectIds";
                return Err(Error::invalid(text));
            }
            (one, None) => return parameters::projects(access, one.clone()),
            (None, Some(several)) => several,
        };
        if named.is_empty() || named.len() > PROJECTS_MAX {
            let text = format!("filter.projectIds must have 1 to {PROJECTS_MAX} items");
            return Err(Error::invalid(text));
        }
        let mut projects = Vec::new();
        for (index, id) in named.iter().enumerate() {
            let project = ids::id(&format!("filter.projectIds[{index}]"), id)?;
            access.project(&project)?;
            projects.push(project);
        }
        projects.sort_unstable();
        projects.dedup();
        Ok(Some(projects))
    }

    fn jobs(&self, action: OperationAction) -> Result<JobFilter, Error> {
        let text = |field: &str, value: &Option<String>| {
            value.as_deref().map(|value| ids::id(field, value)).transpose()
        };
        let at = |field: &str, value: &Option<String>| {
            value.as_deref().map(|value| time(field, value)).transpose()
        };
        let status = self.status.as_deref();
        let status =
            status.map(|name| named("filter.status", name, action.statuses(), Status::name));
        let (from, to) = (at("filter.from", &self.from)?, at("filter.to", &self.to)?);
        if action != OperationAction::Retry && (from.is_some() || to.is_some()) {
            return Err(Error::invalid(
                "filter.from and filter.to are times of ends, and go with the action retry only",
            ));
        }
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return Err(Error::invalid("filter.to must be after filter.from"));
        }
        Ok(JobFilter {
            jobs: self.job_ids.as_deref().map(job_ids).transpose()?,
            // One that follows from the action selects nothing.
            status: status.transpose()?.filter(|_| action.statuses().len() > 1),
            job_type: self
                .r#type
                .as_deref()
                .map(|name| named("filter.type", name, &JobType::ALL, JobType::name))
                .transpose()?,
            batch: text("filter.batchId", &self.batch_id)?,
            processor: text("filter.processor", &self.processor)?,
            error_group: self.error_group.as_deref().map(parameters::error_group).transpose()?,
            created_before: at("filter.createdBefore", &self.created_before)?,
            from,
            to,
        })
    }
}

/// Reads the named jobs. An empty list must not be read as "all".
fn job_ids(listed: &[String]) -> Result<Vec<JobId>, Error> {
    if listed.is_empty() || listed.len() > OPERATION_JOBS_MAX {
        let text = format!("filter.jobIds must have 1 to {OPERATION_JOBS_MAX} items");
        return Err(Error::invalid(text));
    }
    let ids = listed.iter().enumerate();
    ids.map(|(index, id)| ids::job_id(&format!("filter.jobIds[{index}]"), id)).collect()
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
    let id = id.ok().filter(|Path(id)| id.len() == 36).and_then(|Path(id)| id.parse().ok());
    id.ok_or_else(|| Error::invalid("operationId must be the UUID of an operation"))
}
