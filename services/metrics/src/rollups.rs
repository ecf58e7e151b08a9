//! Sums over a range of time, from the rollups: their cost follows the hours asked for.

use std::collections::BTreeMap;

use clickhouse::{Client, Row};
use job::time::{Millis, rfc3339};
use nats::{
    analytics::{Part, Period, Range, Totals},
    query::MetricsQuery,
};
use serde::Deserialize;

const HOUR_MS: Millis = 3_600_000;
const DAY_MS: Millis = 24 * HOUR_MS;
/// What stands for "no run" in a minimum.
const NO_MINIMUM: u64 = u64::MAX;

/// One cell of a rollup.
#[derive(Clone, Debug, Default, Row, Deserialize)]
struct Cell {
    hour: u32,
    job_type: String,
    model: String,
    completed: u64,
    failed: u64,
    canceled: u64,
    runs: u64,
    duration_sum: u64,
    duration_min: u64,
    duration_max: u64,
    waits: u64,
    wait_sum: u64,
    tokens_in: u64,
    tokens_out: u64,
}

impl Cell {
    fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.canceled += other.canceled;
        self.runs += other.runs;
        self.duration_sum += other.duration_sum;
        self.duration_min = self.duration_min.min(other.duration_min);
        self.duration_max = self.duration_max.max(other.duration_max);
        self.waits += other.waits;
        self.wait_sum += other.wait_sum;
        self.tokens_in += other.tokens_in;
        self.tokens_out += other.tokens_out;
    }

    fn nothing() -> Self {
        Self { duration_min: NO_MINIMUM, ..Self::default() }
    }

    fn jobs(&self) -> u64 {
        self.completed + self.failed + self.canceled
    }

    fn part(&self) -> Part {
        Part {
            count: self.jobs(),
            successful: self.completed,
            failed: self.failed,
            avg_duration: ratio(self.duration_sum, self.runs),
            total_tokens: self.tokens_in + self.tokens_out,
        }
    }

    fn period(&self) -> Period {
        let Part { count, successful, failed, avg_duration, total_tokens } = self.part();
        Period { hour: None, day: None, count, successful, failed, avg_duration, total_tokens }
    }
}

/// `part` of `whole`; 0 of nothing.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Sums what was asked for, as of `now`. Sums by group are whole since `groups_since`.
pub(crate) async fn rollups(
    client: &Client,
    ask: &MetricsQuery,
    groups_since: Millis,
    now: Millis,
    as_of: Millis,
) -> clickhouse::error::Result<Totals> {
    let from = from(ask.range, now);
    let cells = cells(client, ask, from).await?;
    let [p50, p95, p99] = quantiles(client, ask, groups_since, from).await?;
    let mut total = Cell::nothing();
    let mut by_type: BTreeMap<String, Cell> = BTreeMap::new();
    let mut by_model: BTreeMap<String, Cell> = BTreeMap::new();
    for cell in &cells {
        total.add(cell);
        by_type.entry(cell.job_type.clone()).or_insert_with(Cell::nothing).add(cell);
        if !cell.model.is_empty() {
            by_model.entry(cell.model.clone()).or_insert_with(Cell::nothing).add(cell);
        }
    }
    let first = cells.first().map(|cell| Millis::from(cell.hour) * 1_000);
    let start = if ask.range == Range::All { first.unwrap_or(floor(now, HOUR_MS)) } else { from };
    let parts = |of: BTreeMap<String, Cell>| of.into_iter().map(|(k, c)| (k, c.part())).collect();
    let days = matches!(ask.range, Range::Month | Range::All);
    Ok(Totals {
        time_range: ask.range,
        as_of: rfc3339(as_of),
        total: total.jobs(),
        successful: total.completed,
        failed: total.failed,
        canceled: total.canceled,
        success_rate: ratio(total.completed, total.completed + total.failed),
        avg_duration: ratio(total.duration_sum, total.runs),
        min_duration: if total.runs == 0 { 0 } else { total.duration_min },
        max_duration: total.duration_max,
        p50_duration: p50,
        p95_duration: p95,
        p99_duration: p99,
        avg_wait: ratio(total.wait_sum, total.waits),
        total_tokens: total.tokens_in + total.tokens_out,
        total_input_tokens: total.tokens_in,
        total_output_tokens: total.tokens_out,
        by_type: parts(by_type),
        by_model: parts(by_model),
        hourly_breakdown: breakdown(&cells, start, now, HOUR_MS, |at, period| {
            period.hour = Some(rfc3339(at));
        }),
        daily_breakdown: days.then(|| {
            breakdown(&cells, start, now, DAY_MS, |at, period| period.day = Some(rfc3339(at)))
        }),
    })
}

/// The beginning of the first hour of a range that ends now.
fn from(range: Range, now: Millis) -> Millis {
    let hours = match range {
        Range::Day => 24,
        Range::Week => 7 * 24,
        Range::Month => 30 * 24,
        Range::All => return 0,
    };
    floor(now, HOUR_MS) - (hours - 1) * HOUR_MS
}

fn floor(at: Millis, step: Millis) -> Millis {
    at.div_euclid(step) * step
}

/// One period a step from `start` to now, oldest first, also where nothing happened.
fn breakdown(
    cells: &[Cell],
    start: Millis,
    now: Millis,
    step: Millis,
    name: impl Fn(Millis, &mut Period),
) -> Vec<Period> {
    let mut rollups: BTreeMap<Millis, Cell> = BTreeMap::new();
    for cell in cells {
        let at = floor(Millis::from(cell.hour) * 1_000, step);
        rollups.entry(at).or_insert_with(Cell::nothing).add(cell);
    }
    let mut periods = Vec::new();
    let mut at = floor(start, step);
    while at <= now {
        let mut period = rollups.get(&at).map(Cell::period).unwrap_or_default();
        name(at, &mut period);
        periods.push(period);
        at += step;
    }
    periods
}

/// The rollup that answers fastest, and the condition on it.
fn source(ask: &MetricsQuery) -> (&'static str, &'static str) {
    match ask.project {
        Some(_) => ("runs_by_project_hour", "project = {project:String} AND"),
        None => ("runs_by_hour", ""),
    }
}

async fn cells(
    client: &Client,
    ask: &MetricsQuery,
    from: Millis,
) -> clickhouse::error::Result<Vec<Cell>> {
    let (table, condition) = source(ask);
    let sql = format!(
        "SELECT toUInt32(hour) AS hour, toString(type) AS job_type, toString(model) AS model,
            sum(completed) AS completed, sum(failed) AS failed, sum(canceled) AS canceled,
            sum(runs) AS runs, sum(duration_sum) AS duration_sum,
            min(duration_min) AS duration_min, max(duration_max) AS duration_max,
            sum(waits) AS waits, sum(wait_sum) AS wait_sum,
            sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out
        FROM {table} AS t
        WHERE {condition} t.hour >= toDateTime({{from:UInt32}}, 'UTC')
        GROUP BY t.hour, t.type, t.model
        ORDER BY t.hour"
    );
    query(client, &sql, ask, from).fetch_all().await
}

async fn quantiles(
    client: &Client,
    ask: &MetricsQuery,
    groups_since: Millis,
    from: Millis,
) -> clickhouse::error::Result<[f64; 3]> {
    let (table, condition) = match source(ask) {
        source if from < groups_since => source,
        // One digest an hour instead of one for each type and model.
        _ if ask.project.is_none() => ("runs_by_group_hour", "dimension = 'all' AND"),
        _ => ("runs_by_group_hour", "dimension = 'project' AND value = {project:String} AND"),
    };
    let sql = format!(
        "SELECT arrayMap(q -> if(isNaN(q), 0, toFloat64(q)),
            quantilesTDigestMerge(0.5, 0.95, 0.99)(durations))
        FROM {table}
        WHERE {condition} hour >= toDateTime({{from:UInt32}}, 'UTC')"
    );
    let quantiles: Vec<f64> = query(client, &sql, ask, from).fetch_one().await?;
    Ok([0, 1, 2].map(|n| quantiles.get(n).copied().unwrap_or(0.0)))
}

fn query(client: &Client, sql: &str, ask: &MetricsQuery, from: Millis) -> clickhouse::query::Query {
    let query = client.query_raw(sql).param("from", u32::try_from(from / 1_000).unwrap_or(0));
    match &ask.project {
        Some(project) => query.param("project", project),
        None => query,
    }
}
