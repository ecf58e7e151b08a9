//! Groups of errors, from the rollup of failed runs.

use std::collections::HashMap;

use clickhouse::{Client, Row};
use job::time::Millis;
use nats::query::{FailureGroup, FailureView, FailuresAnswer, FailuresQuery, RunFilter};
use serde::Deserialize;

use crate::conditions::Conditions;

/// Projects, models and jobs of a group that are named.
const NAMED_MAX: usize = 10;
const HOUR_MS: Millis = 3_600_000;
/// The last hours of the time range, for which failed runs are counted by hour.
const HOURS: i64 = 48;

/// The conditions of groups that are marked.
const MUTED: &str = "has({muted:Array(UInt64)}, id)";
const RESOLVED: &str =
    "transform(id, {resolved:Array(UInt64)}, {resolved_at:Array(UInt64)}, toUInt64(0)) >= last";

#[derive(Row, Deserialize)]
struct GroupRow {
    id: u64,
    error: String,
    jobs: u64,
    runs: u64,
    last: Millis,
    projects: Vec<String>,
    models: Vec<String>,
    sample_jobs: Vec<String>,
}

#[derive(Row, Deserialize)]
struct FirstRow {
    id: u64,
    first: Millis,
}

#[derive(Row, Deserialize)]
struct HourRow {
    id: u64,
    hour: u32,
    runs: u64,
}

/// A page of groups.
pub(crate) async fn failures(
    client: &Client,
    query: &FailuresQuery,
) -> anyhow::Result<FailuresAnswer> {
    let filter = RunFilter { processor: None, ..query.filter.clone() };
    let any_time = Conditions::of_runs(&filter);
    let mut conditions = any_time.clone();
    if let Some(from) = filter.from {
        let sql = "t.hour >= toStartOfHour(fromUnixTimestamp64Milli({from:Int64}))";
        conditions = conditions.millis(sql, "from", from);
    }
    if let Some(to) = filter.to {
        conditions = conditions.millis("t.hour < fromUnixTimestamp64Milli({to:Int64})", "to", to);
    }
    let having = match query.view {
        None => "true".to_owned(),
        Some(FailureView::Active) => format!("NOT {MUTED} AND NOT {RESOLVED}"),
        Some(FailureView::Muted) => MUTED.to_owned(),
        Some(FailureView::Resolved) => format!("NOT {MUTED} AND {RESOLVED}"),
    };
    // No group has the id 0: the arrays are never empty.
    let resolved = query.resolved.iter().map(|(id, at)| (*id, at.unsigned_abs()));
    let (ids, times): (Vec<u64>, Vec<u64>) = resolved.chain([(0, 0)]).unzip();
    let listed = conditions
        .clone()
        .with_unsigneds("muted", query.muted.iter().copied().chain([0]).collect())
        .with_unsigneds("resolved", ids)
        .with_unsigneds("resolved_at", times);
    let order = if query.latest_first { "last DESC" } else { "jobs DESC, runs DESC" };
    let sql = format!(
        "SELECT t.error_group AS id, argMax(t.error, t.last_at) AS error, sum(t.jobs) AS jobs,
            sum(t.runs) AS runs, toUnixTimestamp64Milli(max(t.last_at)) AS last,
            groupUniqArray({NAMED_MAX})(t.project) AS projects,
            groupUniqArrayIf({NAMED_MAX})(toString(t.model), t.model != '') AS models,
            groupUniqArray({NAMED_MAX})(toString(t.job)) AS sample_jobs
        FROM failures_by_hour AS t WHERE {}
        GROUP BY id HAVING {having} ORDER BY {order}, id LIMIT {} OFFSET {}",
        listed.sql(),
        query.limit + 1,
        query.skip
    );
    let mut rows: Vec<GroupRow> = listed.query(client, &sql).fetch_all().await?;
    let has_more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let ids = rows.iter().map(|row| row.id.to_string()).collect::<Vec<_>>().join(", ");
    if ids.is_empty() {
        return Ok(FailuresAnswer { groups: Vec::new(), has_more: false });
    }
    let sql = format!(
        "SELECT t.error_group AS id, toUnixTimestamp64Milli(min(t.first_at)) AS first
        FROM failures_by_hour AS t WHERE {} AND t.error_group IN ({ids}) GROUP BY id",
        any_time.sql()
    );
    let firsts: Vec<FirstRow> = any_time.query(client, &sql).fetch_all().await?;
    let firsts: HashMap<u64, Millis> = firsts.into_iter().map(|row| (row.id, row.first)).collect();
    let first_hour = filter.to.unwrap_or_else(service::now_ms) - HOURS * HOUR_MS;
    let recent = conditions.millis(
        "t.hour > toStartOfHour(fromUnixTimestamp64Milli({first_hour:Int64}))",
        "first_hour",
        first_hour,
    );
    let sql = format!(
        "SELECT t.error_group AS id, toUInt32(t.hour) AS hour, sum(t.runs) AS runs
        FROM failures_by_hour AS t WHERE {} AND t.error_group IN ({ids})
        GROUP BY id, t.hour ORDER BY t.hour",
        recent.sql()
    );
    let mut hours: HashMap<u64, Vec<(Millis, u64)>> = HashMap::new();
    let hour_rows: Vec<HourRow> = recent.query(client, &sql).fetch_all().await?;
    for row in hour_rows {
        hours.entry(row.id).or_default().push((Millis::from(row.hour) * 1_000, row.runs));
    }
    let groups = rows.into_iter().map(|row| FailureGroup {
        first_at: firsts.get(&row.id).copied().unwrap_or(row.last),
        hours: hours.remove(&row.id).unwrap_or_default(),
        id: row.id,
        error: row.error,
        jobs: row.jobs,
        runs: row.runs,
        last_at: row.last,
        projects: row.projects,
        models: row.models,
        sample_jobs: row.sample_jobs.iter().filter_map(|id| id.parse().ok()).collect(),
    });
    Ok(FailuresAnswer { groups: groups.collect(), has_more })
}
