//! How long rows are kept in ClickHouse: the TTL of its tables.

use anyhow::Context;

use crate::config::{ClickHouse, Retention};

/// Tables of sums, with the column of their time.
const SUMS: [(&str, &str); 4] = [
    ("runs_by_hour", "hour"),
    ("runs_by_project_hour", "hour"),
    ("runs_by_group_hour", "hour"),
    ("failures_by_hour", "hour"),
];

/// The table of sums that the last version of the schema made.
const YOUNGEST: &str = "runs_by_group_hour";

/// Changes the TTL of tables that have another one. ClickHouse deletes in the background.
///
/// # Errors
/// If ClickHouse does not answer, or refuses.
pub(crate) async fn apply(retention: Retention, clickhouse: &ClickHouse) -> anyhow::Result<()> {
    let runs = [("job_runs", "toDateTime(at)", retention.runs_retention_days)];
    let sums = SUMS.map(|(table, column)| (table, column, retention.sums_retention_days));
    let audit = [("audit", "toDateTime(at)", retention.audit_retention_days)];
    for (table, time, days) in runs.into_iter().chain(sums).chain(audit) {
        let Some(days) = days else { continue };
        let ttl = format!("{time} + toIntervalDay({days})");
        let is = engine(clickhouse, table).await?;
        let change = match days {
            0 if !is.contains(" TTL ") => continue,
            0 => "REMOVE TTL".to_owned(),
            _ if is.contains(&format!(" TTL {ttl} SETTINGS")) => continue,
            _ if is.ends_with(&format!(" TTL {ttl}")) => continue,
            _ => format!("MODIFY TTL {ttl}"),
        };
        let changed = clickhouse.tables.query_raw(&format!("ALTER TABLE {table} {change}"));
        changed.execute().await.with_context(|| format!("the TTL of {table}"))?;
        tracing::info!(table, days, "the retention of rows has changed");
    }
    if retention.sums_retention_days.is_none() {
        inherit(clickhouse).await?;
    }
    Ok(())
}

/// Keeps rows of the youngest table as long as those of an older one, until it has a TTL of its own.
async fn inherit(clickhouse: &ClickHouse) -> anyhow::Result<()> {
    let Some(days) = sums_days(clickhouse).await? else { return Ok(()) };
    if engine(clickhouse, YOUNGEST).await?.contains(" TTL ") {
        return Ok(());
    }
    let change = format!("ALTER TABLE {YOUNGEST} MODIFY TTL hour + toIntervalDay({days})");
    let changed = clickhouse.tables.query_raw(&change).execute().await;
    changed.with_context(|| format!("the TTL of {YOUNGEST}"))
}

/// The days that sums by hour are kept, if Jobmesh has set them.
async fn sums_days(clickhouse: &ClickHouse) -> anyhow::Result<Option<u32>> {
    let engine = engine(clickhouse, "runs_by_hour").await?;
    let days = engine.split_once(" TTL hour + toIntervalDay(").and_then(|(_, rest)| {
        let (days, rest) = rest.split_once(')')?;
        let is_all = rest.is_empty() || rest.starts_with(" SETTINGS");
        days.parse().ok().filter(|_| is_all)
    });
    Ok(days)
}

/// When ClickHouse deletes ended runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    Never,
    /// After this many days.
    After(u32),
    /// By a TTL that Jobmesh has not set.
    Unknown,
}

/// When ClickHouse deletes ended runs.
pub(crate) async fn deletion(clickhouse: &ClickHouse) -> anyhow::Result<Deletion> {
    let engine = engine(clickhouse, "job_runs").await?;
    let Some((_, ttl)) = engine.split_once(" TTL ") else { return Ok(Deletion::Never) };
    // Other clauses of a TTL move rows or delete some of them.
    let ttl = ttl.split(" SETTINGS ").next().unwrap_or(ttl).trim_end();
    let days = ttl.strip_prefix("toDateTime(at) + toIntervalDay(");
    let days = days.and_then(|days| days.strip_suffix(')')?.parse().ok());
    Ok(days.map_or(Deletion::Unknown, Deletion::After))
}

/// The engine of a table with its clauses.
async fn engine(clickhouse: &ClickHouse, table: &str) -> anyhow::Result<String> {
    let sql = "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {name:String}";
    let query = clickhouse.tables.query_raw(sql).param("database", &clickhouse.database);
    let found = query.param("name", table).fetch_one().await;
    found.with_context(|| format!("table {table}"))
}
