//! For operators: whether the edge lives, and whether the mesh behind it is complete.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use nats::{
    names,
    query::{MetricsQuery, Range, StatsAnswer, StatsQuery},
};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::PATIENCE;
use crate::{app::App, error::Envelope};

/// How long each check may take.
const CHECK_WITHIN: Duration = Duration::from_millis(2_500);

#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    nats: bool,
    state: bool,
    processor: bool,
    metrics: bool,
    /// Messages that no service could process: they are set aside in the stream REJECTED.
    #[serde(rename = "rejectedMessages", skip_serializing_if = "Option::is_none")]
    rejected_messages: Option<u64>,
    /// Subjects whose messages NATS does not store, though it answers: its disk is full or failing. Free
    /// space, then restart nats-server.
    #[serde(rename = "unstoredSubjects", skip_serializing_if = "Vec::is_empty")]
    unstored_subjects: Vec<String>,
}

/// The process answers.
#[utoipa::path(
    get, path = "/healthz", tag = "operators",
    responses((status = 200, description = "It lives.", body = String, content_type = "text/plain"), (status = 405, description = "The endpoint does not take the method.", body = Envelope)),
)]
pub(crate) async fn healthz() -> &'static str {
    "ok"
}

/// 200 where every service behind the edge answers, else 503; the body says which do.
#[utoipa::path(
    get, path = "/readyz", tag = "operators",
    responses((status = 200, description = "All answer.", body = Health), (status = 503, description = "Some do not.", body = Health), (status = 405, description = "The endpoint does not take the method.", body = Envelope)),
)]
pub(crate) async fn readyz(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let counts = StatsQuery { project: None };
    let stats = app.ask_state::<_, StatsAnswer>(names::QUERY_STATS, &counts);
    let day = MetricsQuery { project: None, range: Range::Day };
    let metrics = app.broker.query::<_, serde_json::Value>(names::QUERY_METRICS, &day, PATIENCE);
    // At once, and bounded: probes give up after a few seconds.
    let (stats, metrics, rejected) = tokio::join!(
        timeout(CHECK_WITHIN, stats),
        timeout(CHECK_WITHIN, metrics),
        timeout(CHECK_WITHIN, app.broker.rejected_count()),
    );
    let stats = stats.ok().and_then(Result::ok);
    let health = Health {
        nats: app.broker.is_connected(),
        state: stats.is_some(),
        processor: stats.is_some_and(|stats| stats.capacity > 0),
        metrics: metrics.is_ok_and(|metrics| metrics.is_ok()),
        rejected_messages: rejected.ok().flatten(),
        unstored_subjects: app.unstored.subjects(),
    };
    let stores = health.unstored_subjects.is_empty();
    let ready = health.nats && stores && health.state && health.processor && health.metrics;
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}
