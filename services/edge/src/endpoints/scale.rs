//! GET /api/queue/scale: what the number of processors should follow.

use axum::extract::State;
use job::PriorityClass;
use nats::{
    names,
    query::{DemandAnswer, DemandQuery},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{app::App, body::NoQuery, error::Error, keys::Access, openapi::QuestionError};

#[derive(Serialize, ToSchema)]
#[schema(as = ScaleAnswer)]
pub(crate) struct Response {
    success: bool,
    scale: Scale,
}

/// How many slots all jobs need that can run now.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Scale {
    /// `ready` and `running` together.
    wanted_slots: u64,
    /// Queued jobs that could start now, within the limits of their projects, if slots were free.
    ready: u64,
    running: u64,
    /// Slots of the processors that are online.
    slots: usize,
    /// Processors that are online.
    processors: usize,
    /// How long the oldest ready job has been queued, in ms; absent without one.
    oldest_ready_ms: Oldest,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OldestReady)]
struct Oldest {
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    normal: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    low: Option<u64>,
}

/// Shows how much work could run now: for autoscalers of processors.
#[utoipa::path(
    get, path = "/api/queue/scale", tag = "operators",
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn scale(State(app): State<App>, access: Access, _: NoQuery) -> Answer<Response> {
    access.all_projects()?;
    let answer = app.ask_state(names::QUERY_DEMAND, &DemandQuery {}).await;
    let answer: DemandAnswer = answer.map_err(|error| {
        tracing::warn!(%error, "scale without state");
        Error::away("state", "the queue cannot be read at the moment; send the request again")
    })?;
    let oldest = |class: PriorityClass| answer.oldest_ready_ms[class];
    let scale = Scale {
        wanted_slots: answer.ready + answer.running,
        ready: answer.ready,
        running: answer.running,
        slots: answer.slots,
        processors: answer.processors,
        oldest_ready_ms: Oldest {
            high: oldest(PriorityClass::High),
            normal: oldest(PriorityClass::Normal),
            low: oldest(PriorityClass::Low),
        },
    };
    ok(Response { success: true, scale })
}
