//! The metrics service: ended runs from EVENTS into ClickHouse, each exactly once, and sums over
//! any range of time.
//!
//! ClickHouse away: taking in stops, the backlog waits in EVENTS, and jobs never notice.

mod analytics;
pub mod archive;
mod audit;
mod checkpoint;
mod cluster;
mod conditions;
mod config;
mod failures;
mod group_sums;
mod ingest;
mod jobs;
mod measurements;
mod queries;
mod recent_answers;
mod retention;
mod rollups;
mod rows;
pub mod schema;
mod traces;

use std::time::Duration;

use service::{BackgroundTask, Failures, Health, Identity, Part, tasks};
use tokio_util::sync::CancellationToken;

pub use cluster::ClusterName;
pub use config::{ClickHouseAccess, Config};

/// Finds out whether ClickHouse answers.
const PING: BackgroundTask = BackgroundTask::new("clickhouse check");
/// How often ClickHouse is asked whether it answers.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long ClickHouse may work on a query, in seconds.
const QUERY_MAX_S: &str = "10";

/// Runs a metrics service until `stop` is cancelled.
///
/// # Errors
/// If the NATS account cannot be used; temporary errors are retried.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.retention.check()?;
    let clickhouse = config.clickhouse.clients()?;
    let name = service::instance(Identity::Metrics);
    let health = Health::default();
    let answers = health.part("clickhouse", Some(3 * PING_EVERY));
    let events = health.part("events", None);
    events.works();
    let describe = measurements::describe;
    config.measurements.serve(&health, Identity::Metrics, describe, stop.clone()).await?;
    let broker = config.nats.connect(Identity::Metrics, &name, &stop).await?;
    let Some(broker) = broker else { return Ok(()) };
    health.connected(&broker);
    tasks::list(&[PING]);
    tasks::report_tasks(&broker, Identity::Metrics, &name).await?;
    let client = clickhouse.tables.clone();
    let Some(()) = schema::ensure(&clickhouse, config.retention, &stop).await else {
        return Ok(());
    };
    let exporter = config.otlp.start(Identity::Metrics)?;
    let tracer = exporter.as_ref().map(|exporter| &exporter.tracer);
    let progress = ingest::Progress::default();
    // The edge does not wait longer, and the query would continue.
    let reader = client.clone().with_setting("max_execution_time", QUERY_MAX_S);
    let answering = queries::answer(broker.clone(), &name, reader, progress.clone(), stop.clone());
    // Neither is of use without the other: where one ends, the process does, and is started again.
    let ended = tokio::select! {
        ended = answering => ended,
        () = ping(&client, &answers) => Ok(()),
        () = ingest::run(&broker, &client, &name, &progress, tracer, &events, &stop) => Ok(()),
    };
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    ended
}

/// Finds out again and again whether ClickHouse answers.
async fn ping(client: &clickhouse::Client, health: &Part) {
    let mut failures = Failures::default();
    loop {
        let problem =
            match tokio::time::timeout(PING_EVERY, client.query_raw("SELECT 1").execute()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", PING_EVERY.as_secs())),
            };
        match problem {
            None => {
                failures.succeeded();
                PING.succeeded();
                health.works();
            }
            Some(problem) => {
                if failures.is_news(&problem) {
                    tracing::warn!(error = problem, "ClickHouse does not answer");
                }
                PING.failed(format!("ClickHouse: {problem}"));
                health.fails(problem);
            }
        }
        tokio::time::sleep(PING_EVERY).await;
    }
}
