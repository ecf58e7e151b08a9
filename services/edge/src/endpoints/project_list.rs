//! GET /api/projects: a list of projects.

use axum::{extract::State, http::Uri};
use job::Id;
use nats::{
    names,
    query::{ProjectOrder, ProjectSummary, ProjectsAnswer, ProjectsQuery},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, named, ok, page_limit};
use crate::{app::App, body, error::Error, keys::Access, openapi::QuestionError};

/// The longest text that is searched for, in bytes.
const SEARCH_BYTES_MAX: usize = 128;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProjectList)]
pub(crate) struct Response {
    success: bool,
    projects: Vec<View>,
    /// How many match, on all pages.
    total: usize,
    /// The start of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A project with its counts. A limit of 0 is none.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProjectSummary)]
struct View {
    #[schema(value_type = String)]
    project_id: Id,
    queued: u64,
    processing: u64,
    completed: u64,
    failed: u64,
    canceled: u64,
    /// Queued jobs that wait for their time.
    scheduled: u64,
    paused: bool,
    max_concurrency: u32,
    starts_in_last_minute: u64,
    requests_per_minute: u32,
    tokens_in_last_minute: u64,
    tokens_per_minute: u64,
    max_active_jobs: u32,
    /// Bytes of the data of queued and running jobs.
    active_bytes: u64,
    max_active_bytes: u64,
    enqueued_in_last_minute: u64,
    enqueues_per_minute: u32,
    schedules: usize,
    max_schedules: u32,
}

impl From<ProjectSummary> for View {
    fn from(project: ProjectSummary) -> Self {
        let ProjectSummary { counts, limits, usage, .. } = project;
        Self {
            project_id: project.project,
            queued: counts.queued.iter().sum(),
            processing: counts.processing.iter().sum(),
            completed: counts.completed,
            failed: counts.failed,
            canceled: counts.canceled,
            scheduled: project.scheduled,
            paused: project.paused,
            max_concurrency: limits.max_concurrency,
            starts_in_last_minute: usage.starts,
            requests_per_minute: limits.requests_per_minute,
            tokens_in_last_minute: usage.tokens,
            tokens_per_minute: limits.tokens_per_minute,
            max_active_jobs: limits.max_active_jobs,
            active_bytes: project.active_bytes,
            max_active_bytes: limits.max_active_bytes,
            enqueued_in_last_minute: usage.enqueues,
            enqueues_per_minute: limits.enqueues_per_minute,
            schedules: project.schedules,
            max_schedules: limits.max_schedules,
        }
    }
}

/// Lists projects that have jobs, settings or schedules. The order can change between two pages.
#[utoipa::path(
    get, path = "/api/projects", tag = "projects",
    params(
        ("search" = Option<String>, Query, description = "A part of the id, in lower or upper case.", max_length = 128),
        ("sort" = Option<ProjectOrder>, Query, description = "`id` if absent; otherwise the largest first."),
        ("limit" = Option<u32>, Query, description = "50 if absent.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before."),
    ),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn list_projects(
    State(app): State<App>,
    access: Access,
    uri: Uri,
) -> Answer<Response> {
    let [search, sort, limit, cursor] = body::query(&uri, ["search", "sort", "limit", "cursor"])?;
    if search.as_ref().is_some_and(|text| text.len() > SEARCH_BYTES_MAX) {
        return Err(Error::invalid(format!("search has more than {SEARCH_BYTES_MAX} bytes")));
    }
    let order = sort.map(|name| named("sort", &name, &ProjectOrder::ALL, ProjectOrder::name));
    let (limit, skip) = (page_limit(limit.as_deref())?, super::skip(cursor.as_deref())?);
    let query = ProjectsQuery {
        projects: access.visible(None)?,
        search: search.filter(|text| !text.is_empty()),
        order: order.transpose()?.unwrap_or(ProjectOrder::Id),
        skip,
        limit,
    };
    let answer = app.ask_state(names::QUERY_PROJECTS, &query).await;
    let ProjectsAnswer { projects, total } = answer.map_err(|error| {
        tracing::warn!(%error, "no list of projects");
        Error::away("state", "state does not answer, and only it knows the projects")
    })?;
    let next = skip + projects.len();
    let next_cursor = (next < total && !projects.is_empty()).then(|| next.to_string());
    let projects = projects.into_iter().map(View::from).collect();
    ok(Response { success: true, projects, total, next_cursor })
}
