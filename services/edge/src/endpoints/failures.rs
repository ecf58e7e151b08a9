//! /api/queue/failures: failed runs, grouped by the pattern of their errors, and marks of groups.

pub(crate) mod mark;

use axum::{extract::State, http::Uri};
use job::{JobId, error_pattern};
use nats::{
    failure_marks::{FailureMark, Marked},
    names,
    query::{FailureGroup, FailureView, FailuresAnswer, FailuresQuery},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Answer, PATIENCE, named, ok, page_limit,
    parameters::{RunParameters, error_group_id},
    skip,
};
use crate::{
    app::App,
    body,
    error::Error,
    keys::Access,
    openapi::{ClientJobType, QuestionError},
    view::Time,
};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = FailureList)]
pub(crate) struct Response {
    success: bool,
    groups: Vec<View>,
    /// The start of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The order of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase")]
pub(crate) enum FailureOrder {
    /// The largest number of jobs first.
    Jobs,
    /// The last occurrence first.
    LastSeen,
}

/// Whether a group needs attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FailureStatus {
    /// It is not marked.
    Open,
    /// It was seen again after it was resolved.
    Reopened,
    /// It was muted.
    Muted,
    /// It was resolved, and not seen since.
    Resolved,
}

/// Failed runs whose errors have one pattern.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = FailureGroup)]
struct View {
    /// The `errorGroup` of lists and analytics.
    error_group: String,
    status: FailureStatus,
    /// When it was muted or resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::openapi::When>)]
    marked_at: Option<Time>,
    /// The name of the API key of that request, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    marked_by: Option<String>,
    /// The pattern: the error without numbers, ids, URLs and quoted text.
    pattern: String,
    /// The last error.
    error: String,
    /// Jobs that failed with it. One that was retried since is counted, too.
    jobs: u64,
    /// Runs that failed with it, also those that were followed by another attempt.
    runs: u64,
    /// When it occurred first, also before `from`.
    first_seen: Time,
    last_seen: Time,
    /// Ten of its projects at most.
    projects: Vec<String>,
    /// Ten of its models at most.
    models: Vec<String>,
    /// Ten of its jobs at most.
    #[schema(value_type = Vec<uuid::Uuid>)]
    sample_jobs: Vec<JobId>,
    /// Failed runs by hour, in the last 48 hours of the time range; hours without any are absent.
    hours: Vec<Hour>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = FailureHour)]
struct Hour {
    start: Time,
    runs: u64,
}

impl View {
    fn new(group: FailureGroup, marked: Option<Marked>) -> Self {
        let status = match &marked {
            None => FailureStatus::Open,
            Some(Marked { mark: FailureMark::Open, .. }) => FailureStatus::Open,
            Some(Marked { mark: FailureMark::Muted, .. }) => FailureStatus::Muted,
            Some(Marked { at, .. }) if *at < group.last_at => FailureStatus::Reopened,
            Some(_) => FailureStatus::Resolved,
        };
        let marked_at = marked.as_ref().map(|marked| Time(marked.at));
        let hours = group.hours.into_iter().map(|(at, runs)| Hour { start: Time(at), runs });
        Self {
            error_group: error_group_id(group.id),
            status,
            marked_at,
            marked_by: marked.and_then(|marked| marked.by),
            pattern: error_pattern(&group.error),
            error: group.error,
            jobs: group.jobs,
            runs: group.runs,
            first_seen: Time(group.first_at),
            last_seen: Time(group.last_at),
            projects: group.projects,
            models: group.models,
            sample_jobs: group.sample_jobs,
            hours: hours.collect(),
        }
    }
}

/// Lists groups of errors, with the jobs and runs that failed in whole hours of the time range.
#[utoipa::path(
    get, path = "/api/queue/failures", tag = "queue",
    params(
        ("projectId" = Option<String>, Query, description = "All projects of the key if absent.", min_length = 1, max_length = 128),
        ("type" = Option<ClientJobType>, Query),
        ("model" = Option<String>, Query, min_length = 1, max_length = 128),
        ("errorGroup" = Option<String>, Query, pattern = "^[0-9a-fA-F]{16}$"),
        ("from" = Option<String>, Query, description = "RFC 3339; the hour of this time is included. All time if absent."),
        ("to" = Option<String>, Query, description = "RFC 3339."),
        ("status" = Option<FailureView>, Query, description = "All groups if absent. Marks of one project count if `projectId` names it."),
        ("sort" = Option<FailureOrder>, Query, description = "`lastSeen` if absent."),
        ("limit" = Option<u32>, Query, description = "50 if absent.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before."),
    ),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn list_failures(
    State(app): State<App>,
    access: Access,
    uri: Uri,
) -> Answer<Response> {
    let names = [
        "projectId",
        "type",
        "model",
        "errorGroup",
        "from",
        "to",
        "status",
        "sort",
        "limit",
        "cursor",
    ];
    let [project, job_type, model, error_group, from, to, status, sort, limit, cursor] =
        body::query(&uri, names)?;
    let parameters =
        RunParameters { project, job_type, model, processor: None, error_group, from, to };
    let order = sort.map(|name| {
        named("sort", &name, &[FailureOrder::Jobs, FailureOrder::LastSeen], |order| match order {
            FailureOrder::Jobs => "jobs",
            FailureOrder::LastSeen => "lastSeen",
        })
    });
    let view = status.map(|name| {
        let views = [FailureView::Active, FailureView::Muted, FailureView::Resolved];
        named("status", &name, &views, |view| match view {
            FailureView::Active => "active",
            FailureView::Muted => "muted",
            FailureView::Resolved => "resolved",
        })
    });
    let view = view.transpose()?;
    let (limit, skip) = (page_limit(limit.as_deref())?, skip(cursor.as_deref())?);
    let filter = parameters.filter(&access)?;
    // Of the only project, if there is one.
    let project = filter.projects.as_deref().filter(|projects| projects.len() == 1);
    let mut marks =
        app.marks.read(project.map(|projects| &projects[0])).await.map_err(|error| {
            tracing::warn!(%error, "no marks of error groups");
            Error::unanswered()
        })?;
    let of = |mark: FailureMark| {
        marks.iter().filter(move |(_, marked)| marked.mark == mark).map(|(id, it)| (*id, it.at))
    };
    let query = FailuresQuery {
        view,
        muted: of(FailureMark::Muted).map(|(id, _)| id).collect(),
        resolved: of(FailureMark::Resolved).collect(),
        filter,
        latest_first: order.transpose()?.is_none_or(|order| order == FailureOrder::LastSeen),
        skip,
        limit,
    };
    let answer = app.broker.query(names::QUERY_FAILURES, &query, PATIENCE * 5).await;
    let FailuresAnswer { groups, has_more } = answer.map_err(|error| {
        tracing::warn!(%error, "no groups of errors");
        Error::away("metrics", "metrics does not answer, or ClickHouse does not answer it")
    })?;
    let next_cursor = has_more.then(|| (skip + groups.len()).to_string());
    let groups = groups.into_iter().map(|group| {
        let marked = marks.remove(&group.id);
        View::new(group, marked)
    });
    let groups = groups.collect();
    ok(Response { success: true, groups, next_cursor })
}
