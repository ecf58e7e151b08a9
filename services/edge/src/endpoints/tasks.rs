//! GET /api/tasks: the background tasks of services, and their last results.

use axum::extract::State;
use nats::tasks::{ProcessTasks, TaskReport};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{
    app::App, body::NoQuery, error::Error, keys::Access, openapi::QuestionError, view::Time,
};

#[derive(Serialize, ToSchema)]
#[schema(as = TaskList)]
pub(crate) struct Response {
    success: bool,
    tasks: Vec<View>,
}

/// What a process does in the background.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Task)]
struct View {
    /// Its name, which no other task of the process has.
    task: String,
    /// The service that it belongs to: `edge`, `state` or `metrics`.
    service: String,
    /// The process.
    instance: String,
    /// False if it failed when it was last tried.
    ok: bool,
    /// How often it has succeeded since the process started.
    succeeded: u64,
    /// How often it has failed.
    failed: u64,
    /// When it last succeeded or failed. Absent if it has done neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<Time>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn views(process: ProcessTasks) -> impl Iterator<Item = View> {
    let ProcessTasks { service, instance, tasks } = process;
    tasks.into_iter().map(move |TaskReport { task, succeeded, failed, last_at, error }| View {
        task,
        service: service.clone(),
        instance: instance.clone(),
        ok: error.is_none(),
        succeeded,
        failed,
        last_at: last_at.map(Time),
        error,
    })
}

/// Lists the background tasks of the processes that answer within half a second. Processors have none to show.
#[utoipa::path(
    get, path = "/api/tasks", tag = "operators",
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn list_tasks(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
) -> Answer<Response> {
    access.all_projects()?;
    let processes = app.broker.tasks().await.map_err(|error| {
        tracing::warn!(%error, "no list of tasks");
        Error::unanswered()
    })?;
    ok(Response { success: true, tasks: processes.into_iter().flat_map(views).collect() })
}
