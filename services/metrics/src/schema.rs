//! The tables: each version of the schema is applied once, in order.

use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::ClusterName,
    config::{ClickHouse, DATABASE, Retention},
    retention,
};

/// The versions of the schema, the first one first.
const VERSIONS: [&str; 4] = [
    include_str!("../../../deploy/clickhouse/schema/0001_runs.sql"),
    include_str!("../../../deploy/clickhouse/schema/0002_analytics.sql"),
    include_str!("../../../deploy/clickhouse/schema/0003_traces.sql"),
    include_str!("../../../deploy/clickhouse/schema/0004_groups.sql"),
];
/// The version of this program.
pub(crate) const VERSION: u32 = VERSIONS.len() as u32;
/// The versions that were applied. Two services may apply one at the same time: its statements can be run again.
const CREATE_VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions
    (version UInt32, applied_at DateTime('UTC') DEFAULT now()) ENGINE = MergeTree ORDER BY version";
/// How long to wait before ClickHouse is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Makes database and tables, and sets how long rows are kept; waits for ClickHouse. `None` if `stop` came first.
pub(crate) async fn ensure(
    clickhouse: &ClickHouse,
    retention: Retention,
    stop: &CancellationToken,
) -> Option<()> {
    let ensure = || try_ensure(clickhouse, retention);
    service::retry_until(stop, PAUSE, "tables not ensured yet", ensure).await
}

async fn try_ensure(clickhouse: &ClickHouse, retention: Retention) -> anyhow::Result<()> {
    let at = || format!("ClickHouse at {}", clickhouse.shown);
    create(clickhouse).await.with_context(at)?;
    retention::apply(retention, clickhouse).await.with_context(at)
}

/// Makes database and tables.
pub(crate) async fn create(clickhouse: &ClickHouse) -> clickhouse::error::Result<()> {
    let cluster = clickhouse.cluster.as_ref();
    let create = on(cluster, &create_database(&clickhouse.database));
    clickhouse.server.query_raw(&create).execute().await?;
    let tables = &clickhouse.tables;
    tables.query_raw(&on(cluster, CREATE_VERSIONS)).execute().await?;
    let applied = applied(clickhouse).await?;
    if applied as usize > VERSIONS.len() {
        tracing::warn!(applied, known = VERSIONS.len(), "the tables are of a newer version");
    }
    for (version, schema) in (1_u32..).zip(VERSIONS).skip(applied as usize) {
        for statement in statements(schema) {
            tables.query_raw(&on(cluster, &statement)).execute().await?;
        }
        let insert = format!("INSERT INTO schema_versions (version) VALUES ({version})");
        tables.query_raw(&insert).execute().await?;
        tracing::info!(version, "schema applied");
    }
    Ok(())
}

/// All statements that make the tables on a server, or on all servers of a cluster.
pub fn sql(cluster: Option<&ClusterName>) -> String {
    let create =
        [create_database(DATABASE), format!("USE `{DATABASE}`"), CREATE_VERSIONS.to_owned()];
    let versions = (1_u32..).zip(VERSIONS).flat_map(|(version, schema)| {
        let insert = format!("INSERT INTO schema_versions (version) VALUES ({version})");
        statements(schema).into_iter().chain([insert])
    });
    let all = create.into_iter().chain(versions).map(|statement| on(cluster, &statement));
    all.map(|statement| statement + ";\n").collect::<Vec<_>>().join("\n")
}

fn create_database(name: &str) -> String {
    format!("CREATE DATABASE IF NOT EXISTS `{}`", name.replace('`', ""))
}

/// A statement for a server, or for all of a cluster.
fn on(cluster: Option<&ClusterName>, statement: &str) -> String {
    cluster.map_or_else(|| statement.to_owned(), |cluster| cluster.statement(statement))
}

/// The version of the tables that are there.
pub(crate) async fn applied(clickhouse: &ClickHouse) -> clickhouse::error::Result<u32> {
    clickhouse.tables.query_raw("SELECT max(version) FROM schema_versions").fetch_one().await
}

/// The statements of a version, without its comments.
fn statements(schema: &str) -> Vec<String> {
    let lines = schema.lines().filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split(';').map(|statement| statement.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_can_be_run_again() {
        let statements: Vec<String> = VERSIONS.into_iter().flat_map(statements).collect();
        for statement in &statements {
            let is_safe = statement.starts_with("CREATE TABLE IF NOT EXISTS")
                || statement.starts_with("CREATE MATERIALIZED VIEW IF NOT EXISTS")
                || statement.contains("MODIFY QUERY")
                || statement.lines().all(|line| {
                    line.starts_with("ALTER TABLE") || line.contains("ADD COLUMN IF NOT EXISTS")
                });
            assert!(is_safe, "{statement}");
        }
        assert_eq!(statements.len(), 16);
    }
}
