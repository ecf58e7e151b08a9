//! For operators: whether the edge lives, and whether the mesh behind it is complete.

use std::time::{Duration, Instant};

use axum::{Json, extract::State, http::StatusCode};
use nats::{
    analytics::Range,
    names,
    query::{MetricsQuery, StatsAnswer, StatsQuery},
};
use tokio::time::timeout;

use super::PATIENCE;
use crate::{app::App, error::Envelope, view::Health};

/// How long each check may take.
const CHECK_WITHIN: Duration = Duration::from_millis(2_500);
/// For how long the result answers other probes: they need no key, and each check asks all services.
const CHECK_EVERY: Duration = Duration::from_secs(1);

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
    let mut last = app.readiness.lock().await;
    let health = match &*last {
        Some((at, health)) if at.elapsed() < CHECK_EVERY => health.clone(),
        _ => {
            let health = check(&app).await;
            *last = Some((Instant::now(), health.clone()));
            health
        }
    };
    drop(last);
    let stores = health.unstored_subjects.is_empty();
    let ready = health.nats && stores && health.state && health.processor && health.metrics;
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}

async fn check(app: &App) -> Health {
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
    Health {
        nats: app.broker.is_connected(),
        state: stats.is_some(),
        processor: stats.is_some_and(|stats| stats.capacity > 0),
        metrics: metrics.is_ok_and(|metrics| metrics.is_ok()),
        rejected_messages: rejected.ok().flatten(),
        unstored_subjects: app.unstored.subjects(),
    }
}
