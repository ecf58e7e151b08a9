//! GET /api/queue/stats: current, exact counts.

use axum::{extract::State, http::Uri};
use job::{Id, PriorityClass};
use nats::{
    names,
    query::{StatsAnswer, StatsQuery},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{app::App, body, error::Error, ids, keys::Access, openapi::QuestionError};

#[derive(Serialize, ToSchema)]
#[schema(as = Stats)]
pub(crate) struct Response {
    success: bool,
    queue: Queue,
    worker: Worker,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Queue {
    queued: u64,
    processing: u64,
    completed: u64,
    failed: u64,
    canceled: u64,
    scheduled: u64,
    total_jobs: u64,
    by_class: ByClass,
}

#[derive(Serialize, ToSchema)]
struct ByClass {
    high: Live,
    normal: Live,
    low: Live,
}

#[derive(Serialize, ToSchema)]
struct Live {
    queued: u64,
    processing: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Worker {
    is_running: bool,
    processors: u64,
    active_jobs: u64,
    /// 0: no limit.
    requests_per_minute: u64,
    max_concurrency: u64,
}

/// Shows counts, of all projects or of one.
#[utoipa::path(
    get, path = "/api/queue/stats", tag = "queue",
    params(("projectId" = Option<String>, Query, description = "All projects where absent.", min_length = 1, max_length = 128)),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn stats(State(app): State<App>, access: Access, uri: Uri) -> Answer<Response> {
    let [project] = body::query(&uri, ["projectId"])?;
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    access.project_or_all(project.as_ref())?;
    let answer = query(&app, project.as_ref()).await.map_err(|error| {
        tracing::warn!(error = %error, "stats without state");
        Error::away("state", "state does not answer, and only it knows the counts")
    })?;
    let (queue, worker) = views(&answer);
    ok(Response { success: true, queue, worker })
}

/// Queries the counts of a project, or of all.
pub(super) async fn query(
    app: &App,
    project: Option<&Id>,
) -> Result<StatsAnswer, nats::query::Error> {
    let query = StatsQuery { project: project.map(ToString::to_string) };
    app.ask_state(names::QUERY_STATS, &query).await
}

/// What clients see of the counts.
pub(super) fn views(answer: &StatsAnswer) -> (Queue, Worker) {
    let counts = answer.counts;
    let live = |class: PriorityClass| Live {
        queued: counts.queued[class],
        processing: counts.processing[class],
    };
    let processing = counts.processing.iter().sum();
    let queue = Queue {
        queued: counts.queued.iter().sum(),
        processing,
        completed: counts.completed,
        failed: counts.failed,
        canceled: counts.canceled,
        scheduled: answer.scheduled,
        total_jobs: counts.total(),
        by_class: ByClass {
            high: live(PriorityClass::High),
            normal: live(PriorityClass::Normal),
            low: live(PriorityClass::Low),
        },
    };
    let worker = Worker {
        is_running: answer.processors > 0,
        processors: answer.processors,
        active_jobs: processing,
        requests_per_minute: u64::from(answer.limits.requests_per_minute),
        max_concurrency: match answer.limits.max_concurrency {
            0 => answer.capacity,
            limit => u64::from(limit),
        },
    };
    (queue, worker)
}
