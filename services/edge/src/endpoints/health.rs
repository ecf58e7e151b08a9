//! For operators: whether the edge lives, and whether the mesh behind it is complete.

use std::time::{Duration, Instant};

use axum::{Json, extract::State, http::StatusCode};
use nats::{
    analytics::Range,
    names,
    query::{LeaderAnswer, LeaderQuery, MetricsQuery},
};
use tokio::time::timeout;

use super::PATIENCE;
use crate::{app::App, error::Envelope, view::Health};

/// How long each check may take.
const CHECK_WITHIN: Duration = Duration::from_millis(2_500);
/// How long a change of leaders may take.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(6);
/// For how long the result answers other probes: they need no key, and each check asks all services.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The process answers.
#[utoipa::path(
    get, path = "/livez", tag = "operators",
    responses((status = 200, description = "It lives.", body = String, content_type = "text/plain"), (status = 405, description = "The endpoint does not take the method.", body = Envelope)),
)]
pub(crate) async fn livez() -> &'static str {
    "ok"
}

/// The same as `/livez`.
#[utoipa::path(
    get, path = "/healthz", tag = "operators",
    responses((status = 200, description = "It lives.", body = String, content_type = "text/plain"), (status = 405, description = "The endpoint does not take the method.", body = Envelope)),
)]
pub(crate) async fn healthz() -> &'static str {
    "ok"
}

/// Whether this edge can accept and show jobs: NATS stores messages, and a leading state service answers. The body also says
/// whether processors and metrics answer, without which jobs wait, and sums over time are missing.
#[utoipa::path(
    get, path = "/readyz", tag = "operators",
    responses((status = 200, description = "Ready.", body = Health), (status = 503, description = "Not ready.", body = Health), (status = 405, description = "The endpoint does not take the method.", body = Envelope)),
)]
pub(crate) async fn readyz(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let mut readiness = app.readiness.lock().await;
    let health = match &readiness.checked {
        Some((at, health)) if at.elapsed() < CHECK_EVERY => health.clone(),
        _ => {
            let health = check(&app, &mut readiness.leader).await;
            readiness.checked = Some((Instant::now(), health.clone()));
            health
        }
    };
    drop(readiness);
    let stores = health.unstored_subjects.is_empty();
    let ready = health.nats && stores && health.state;
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}

async fn check(app: &App, last: &mut Option<(Instant, u64)>) -> Health {
    let question = LeaderQuery {};
    let leader = app.broker.query::<_, LeaderAnswer>(names::QUERY_LEADER, &question, PATIENCE);
    let day = MetricsQuery { project: None, range: Range::Day };
    let metrics = app.broker.query::<_, serde_json::Value>(names::QUERY_METRICS, &day, PATIENCE);
    // At once, and bounded: probes give up after a few seconds.
    let (leader, metrics, rejected, spare) = tokio::join!(
        timeout(CHECK_WITHIN, leader),
        timeout(CHECK_WITHIN, metrics),
        timeout(CHECK_WITHIN, app.broker.rejected_count()),
        timeout(CHECK_WITHIN, app.broker.spare_servers()),
    );
    if let Ok(Ok(leader)) = leader {
        *last = Some((Instant::now(), leader.capacity));
    }
    // Another replica begins to lead within this time; requests wait for it.
    let leader = last.filter(|(at, _)| at.elapsed() < TAKEOVER_WITHIN);
    Health {
        nats: app.broker.is_connected(),
        state: leader.is_some(),
        processor: leader.is_some_and(|(_, capacity)| capacity > 0),
        metrics: metrics.is_ok_and(|metrics| metrics.is_ok()),
        spare_servers: spare.ok().flatten(),
        rejected_messages: rejected.ok().flatten(),
        unstored_subjects: app.unstored.subjects(),
    }
}
