//! The metrics service: ended runs from EVENTS into ClickHouse, each exactly once, and sums over
//! any range of time.
//!
//! ClickHouse away: taking in stops, the backlog waits in EVENTS, and jobs never notice.

mod config;
mod place;
mod pump;
mod questions;
mod rows;
mod schema;
mod sums;

use tokio_util::sync::CancellationToken;

pub use config::Config;

/// Runs a metrics service until `stop` is cancelled.
///
/// # Errors
/// Where the NATS account cannot be used; everything that may pass is waited out.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let clickhouse = config.clickhouse()?;
    let name = service::instance("metrics");
    let Some(broker) = config.nats.connect(&name, &stop).await? else { return Ok(()) };
    let client = clickhouse.tables.clone();
    let Some(()) = schema::ensure(&clickhouse, &stop).await else { return Ok(()) };
    let progress = pump::Progress::default();
    let answering =
        questions::answer(broker.clone(), client.clone(), progress.clone(), stop.clone());
    // Neither is of use without the other: where one ends, the process does, and is started again.
    tokio::select! {
        ended = answering => ended,
        () = pump::run(&broker, &client, &name, &progress, &stop) => Ok(()),
    }
}
