//! GET /api/processors: the processors and how they are.

use axum::extract::State;
use job::{Id, JobType};
use nats::{
    names,
    query::{ProcessorSummary, ProcessorsAnswer, ProcessorsQuery},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{
    app::App, body::NoQuery, error::Error, keys::Access, openapi::QuestionError, view::Time,
};

#[derive(Serialize, ToSchema)]
#[schema(as = ProcessorList)]
pub(crate) struct Response {
    success: bool,
    processors: Vec<View>,
}

/// A process that runs jobs.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Processor)]
struct View {
    /// Its name: the `worker` of the jobs that it runs.
    #[schema(value_type = String)]
    processor: Id,
    /// False if it has missed its heartbeats. It is listed for ten more minutes.
    online: bool,
    /// True while it stops and takes no further work.
    draining: bool,
    /// How many jobs it runs at once.
    capacity: usize,
    /// How many it ran at its last heartbeat.
    running: usize,
    types: Vec<&'static str>,
    /// The names of the handlers that a project can choose.
    #[schema(value_type = Vec<String>)]
    handlers: Vec<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    version: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Time>,
    /// How long ago its last heartbeat arrived, in ms. It sends one every 2,000 ms.
    heartbeat_age_ms: u64,
}

impl From<ProcessorSummary> for View {
    fn from(processor: ProcessorSummary) -> Self {
        Self {
            processor: processor.processor,
            online: processor.online,
            draining: processor.draining,
            capacity: processor.capacity,
            running: processor.running,
            types: processor.job_types.into_iter().map(JobType::name).collect(),
            handlers: processor.handlers,
            version: processor.version,
            started_at: processor.started_at.map(Time),
            heartbeat_age_ms: processor.heartbeat_age_ms,
        }
    }
}

/// Lists the processors that are online, and those that went offline in the last ten minutes.
#[utoipa::path(
    get, path = "/api/processors", tag = "operators",
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn list_processors(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
) -> Answer<Response> {
    access.all_projects()?;
    let answer = app.ask_state(names::QUERY_PROCESSORS, &ProcessorsQuery {}).await;
    let ProcessorsAnswer { processors } = answer.map_err(|error| {
        tracing::warn!(%error, "no list of processors");
        Error::away("state", "state does not answer, and only it knows the processors")
    })?;
    ok(Response { success: true, processors: processors.into_iter().map(View::from).collect() })
}
