//! GET /api/queue/metrics: durations, tokens and outcomes over a range of time.

use axum::{extract::State, http::Uri};
use nats::{analytics::Range, names, query::MetricsQuery};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Answer, PATIENCE, ok};
use crate::{app::App, body, error::Error, ids, keys::Access, openapi::QuestionError};

#[derive(Serialize, ToSchema)]
#[schema(as = Metrics)]
pub(crate) struct Response {
    success: bool,
    #[schema(value_type = nats::analytics::Totals)]
    stats: Box<RawValue>,
}

/// Shows sums, of all projects or of one.
#[utoipa::path(
    get, path = "/api/queue/metrics", tag = "queue",
    params(("projectId" = Option<String>, Query, description = "All projects where absent.", min_length = 1, max_length = 128), ("timeRange" = Option<Range>, Query, description = "24h where absent.")),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn metrics(State(app): State<App>, access: Access, uri: Uri) -> Answer<Response> {
    let [project, range] = body::query(&uri, ["projectId", "timeRange"])?;
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    access.project_or_all(project.as_ref())?;
    let range = match range {
        None => Range::Day,
        Some(name) => Range::ALL
            .into_iter()
            .find(|range| range.name() == name)
            .ok_or_else(|| Error::invalid("timeRange must be 24h, 7d, 30d or all"))?,
    };
    let question = MetricsQuery { project: project.map(|id| id.to_string()), range };
    let stats = app.broker.query(names::QUERY_METRICS, &question, PATIENCE * 5).await;
    let stats = stats.map_err(|error| {
        tracing::warn!(error = %error, "no metrics");
        Error::away(
            "metrics",
            "metrics does not answer, or ClickHouse does not answer it; jobs go on",
        )
    })?;
    ok(Response { success: true, stats })
}
