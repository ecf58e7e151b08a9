//! The metrics service: ended runs from EVENTS into ClickHouse, each exactly once, and sums over
//! any range of time.
//!
//! ClickHouse away: taking in stops, the backlog waits in EVENTS, and jobs never notice.

mod analytics;
mod audit;
mod checkpoint;
mod conditions;
mod config;
mod failures;
mod ingest;
mod jobs;
mod measurements;
mod queries;
mod recent_answers;
mod rollups;
mod rows;
mod schema;
mod traces;

use service::Identity;
use tokio_util::sync::CancellationToken;

pub use config::Config;

/// How long ClickHouse may work on a query, in seconds.
const QUERY_MAX_S: &str = "10";

/// Runs a metrics service until `stop` is cancelled.
///
/// # Errors
/// If the NATS account cannot be used; temporary errors are retried.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let clickhouse = config.clickhouse()?;
    let name = service::instance(Identity::Metrics);
    let broker = config.nats.connect(Identity::Metrics, &name, &stop).await?;
    let Some(broker) = broker else { return Ok(()) };
    let describe = measurements::describe;
    config.measurements.serve(&broker, Identity::Metrics, describe, stop.clone()).await?;
    let client = clickhouse.tables.clone();
    let Some(()) = schema::ensure(&clickhouse, &stop).await else { return Ok(()) };
    let exporter = config.otlp.start(Identity::Metrics)?;
    let tracer = exporter.as_ref().map(|exporter| &exporter.tracer);
    let progress = ingest::Progress::default();
    // The edge has given up by then, and the query would go on.
    let reader = client.clone().with_setting("max_execution_time", QUERY_MAX_S);
    let answering = queries::answer(broker.clone(), reader, progress.clone(), stop.clone());
    // Neither is of use without the other: where one ends, the process does, and is started again.
    let ended = tokio::select! {
        ended = answering => ended,
        () = ingest::run(&broker, &client, &name, &progress, tracer, &stop) => Ok(()),
    };
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    ended
}
