//! The tables, created if they are missing.

use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::ClickHouse;

/// The schema, as operators have it too.
const SCHEMA: &str = include_str!("../../../deploy/clickhouse/schema.sql");
/// How long to wait before ClickHouse is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Makes database and tables; waits for ClickHouse. `None` where `stop` came first.
pub(crate) async fn ensure(clickhouse: &ClickHouse, stop: &CancellationToken) -> Option<()> {
    service::retry_until(stop, PAUSE, "tables not ensured yet", || try_ensure(clickhouse)).await
}

async fn try_ensure(clickhouse: &ClickHouse) -> anyhow::Result<()> {
    let at = || format!("ClickHouse at {}", clickhouse.shown);
    create(clickhouse).await.with_context(at)
}

async fn create(clickhouse: &ClickHouse) -> clickhouse::error::Result<()> {
    let database = clickhouse.database.replace('`', "");
    let create = format!("CREATE DATABASE IF NOT EXISTS `{database}`");
    clickhouse.server.query_raw(&create).execute().await?;
    for statement in statements(SCHEMA) {
        clickhouse.tables.query_raw(&statement).execute().await?;
    }
    Ok(())
}

/// The statements of the schema, without its comments.
fn statements(schema: &str) -> Vec<String> {
    let lines = schema.lines().filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split(';').map(|statement| statement.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_four_tables_and_two_views() {
        let statements = statements(SCHEMA);
        let begins = |with: &str| statements.iter().filter(|s| s.starts_with(with)).count();
        assert_eq!(begins("CREATE TABLE IF NOT EXISTS"), 4);
        assert_eq!(begins("CREATE MATERIALIZED VIEW IF NOT EXISTS"), 2);
        assert_eq!(statements.len(), 6);
    }
}
