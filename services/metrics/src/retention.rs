//! How long rows are kept in ClickHouse: the TTL of its tables.

use anyhow::{Context, ensure};

use crate::config::ClickHouse;

/// How long rows are kept. A table whose days are not set stays as it is.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Retention {
    /// For how many days ended runs are kept in ClickHouse, 0 for ever. The table stays as it is if not set.
    #[arg(long, env = "JOBMESH_RUNS_RETENTION_DAYS")]
    pub runs_retention_days: Option<u32>,
    /// For how many days sums by hour are kept in ClickHouse, 0 for ever: at least as long as ended runs.
    #[arg(long, env = "JOBMESH_SUMS_RETENTION_DAYS")]
    pub sums_retention_days: Option<u32>,
    /// For how many days the audit log is kept in ClickHouse, 0 for ever.
    #[arg(long, env = "JOBMESH_AUDIT_RETENTION_DAYS")]
    pub audit_retention_days: Option<u32>,
}

/// Tables of sums, with the column of their time.
const SUMS: [(&str, &str); 3] =
    [("runs_by_hour", "hour"), ("runs_by_project_hour", "hour"), ("failures_by_hour", "hour")];

impl Retention {
    /// Checks the settings.
    ///
    /// # Errors
    /// If sums would be deleted before the runs that they are made of.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        let forever = |days: Option<u32>| days.map(|days| if days == 0 { u32::MAX } else { days });
        let (runs, sums) = (forever(self.runs_retention_days), forever(self.sums_retention_days));
        if let (Some(runs), Some(sums)) = (runs, sums) {
            ensure!(
                sums >= runs,
                "JOBMESH_SUMS_RETENTION_DAYS must be at least JOBMESH_RUNS_RETENTION_DAYS"
            );
        }
        Ok(())
    }

    /// Changes the TTL of tables that have another one. ClickHouse deletes in the background.
    ///
    /// # Errors
    /// If ClickHouse does not answer, or refuses.
    pub(crate) async fn apply(self, clickhouse: &ClickHouse) -> anyhow::Result<()> {
        let runs = [("job_runs", "toDateTime(at)", self.runs_retention_days)];
        let sums = SUMS.map(|(table, column)| (table, column, self.sums_retention_days));
        let audit = [("audit", "toDateTime(at)", self.audit_retention_days)];
        for (table, time, days) in runs.into_iter().chain(sums).chain(audit) {
            let Some(days) = days else { continue };
            let ttl = format!("{time} + toIntervalDay({days})");
            let is = engine(clickhouse, table).await?;
            let change = match days {
                0 if !is.contains(" TTL ") => continue,
                0 => "REMOVE TTL".to_owned(),
                _ if is.contains(&format!(" TTL {ttl}")) => continue,
                _ => format!("MODIFY TTL {ttl}"),
            };
            let changed = clickhouse.tables.query_raw(&format!("ALTER TABLE {table} {change}"));
            changed.execute().await.with_context(|| format!("the TTL of {table}"))?;
            tracing::info!(table, days, "the retention of rows has changed");
        }
        Ok(())
    }
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
    let days = ttl.strip_prefix("toDateTime(at) + toIntervalDay(");
    let days = days.and_then(|days| days.split(')').next()?.parse().ok());
    Ok(days.map_or(Deletion::Unknown, Deletion::After))
}

/// The engine of a table with its clauses.
async fn engine(clickhouse: &ClickHouse, table: &str) -> anyhow::Result<String> {
    let sql = "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {name:String}";
    let query = clickhouse.tables.query_raw(sql).param("database", &clickhouse.database);
    let found = query.param("name", table).fetch_one().await;
    found.with_context(|| format!("table {table}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_outlive_their_runs() {
        let check = |runs, sums| {
            let retention = Retention {
                runs_retention_days: runs,
                sums_retention_days: sums,
                audit_retention_days: None,
            };
            retention.check().is_ok()
        };
        assert!(check(None, Some(1)) && check(Some(30), None) && check(Some(30), Some(0)));
        assert!(check(Some(30), Some(30)));
        assert!(!check(Some(30), Some(29)) && !check(Some(0), Some(400)));
    }
}
