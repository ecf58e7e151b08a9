//! Sums by bucket and group, from the rollups if they have what is asked for, else from the runs.

mod source;

use std::collections::HashMap;

use clickhouse::{Client, Row};
use jiff::{Span, Timestamp, Unit, Zoned, civil::Weekday, tz::TimeZone};
use job::time::{Millis, rfc3339};
use nats::{
    analytics::{Analytics, Bucket, BucketSums, Distribution, GroupBy, Sums},
    query::AnalyticsQuery,
};
use serde::Deserialize;

use crate::conditions::Conditions;
use source::Source;

const HOUR_MS: Millis = 3_600_000;
/// The name of the group of all that are not listed, in queries.
const OTHER: &str = "other";

/// One row of an answer; the start is 0 in a total.
#[derive(Clone, Debug, Default, Row, Deserialize)]
struct Cell {
    start: i64,
    group: String,
    listed: u8,
    completed: u64,
    failed: u64,
    canceled: u64,
    runs: u64,
    retries: u64,
    lost_runs: u64,
    duration_sum: u64,
    wait_sum: u64,
    tokens_in: u64,
    tokens_out: u64,
    wasted_tokens: u64,
    durations: Vec<f64>,
    waits: Vec<f64>,
}

/// The percentiles of a cell, from a query of their own.
#[derive(Clone, Debug, Row, Deserialize)]
struct Percentiles {
    start: i64,
    group: String,
    #[expect(dead_code, reason = "it is 1 in all rows")]
    listed: u8,
    durations: Vec<f64>,
    waits: Vec<f64>,
}

/// What stands for percentiles from a query of their own.
const NO_PERCENTILES: &str =
    "CAST([], 'Array(Float64)') AS durations, CAST([], 'Array(Float64)') AS waits";

impl Cell {
    fn sums(self, group_by: Option<GroupBy>) -> Sums {
        let is_listed = self.listed == 1;
        let mean = |sum: u64| if self.runs == 0 { 0.0 } else { sum as f64 / self.runs as f64 };
        let distribution = |sum: u64, percentiles: &[f64]| {
            let percentile = |n: usize| percentiles.get(n).copied().filter(|_| is_listed);
            Distribution {
                avg: mean(sum),
                p50: percentile(0),
                p95: percentile(1),
                p99: percentile(2),
            }
        };
        let decided = self.completed + self.failed;
        Sums {
            group: group_by.map(|_| if is_listed { self.group } else { OTHER.to_owned() }),
            is_other: !is_listed,
            jobs: decided + self.canceled,
            completed: self.completed,
            failed: self.failed,
            canceled: self.canceled,
            runs: self.runs,
            retries: self.retries,
            lost_runs: self.lost_runs,
            success_rate: if decided == 0 { 0.0 } else { self.completed as f64 / decided as f64 },
            duration: distribution(self.duration_sum, &self.durations),
            wait: distribution(self.wait_sum, &self.waits),
            input_tokens: self.tokens_in,
            output_tokens: self.tokens_out,
            wasted_tokens: self.wasted_tokens,
        }
    }
}

/// Sums what was asked for, as of `as_of`. Sums by group are whole since `groups_since`.
pub(crate) async fn analytics(
    client: &Client,
    query: &AnalyticsQuery,
    groups_since: Millis,
    as_of: Millis,
) -> anyhow::Result<Analytics> {
    let zone = TimeZone::get(&query.time_zone)?;
    let source = Source::of(query, &zone, groups_since)?;
    // The same range whatever is read.
    let (from, to) = match query.bucket {
        Bucket::Minute => (query.from, query.to),
        Bucket::Hour | Bucket::Day | Bucket::Week => {
            (floor(query.from), floor(query.to - 1) + HOUR_MS)
        }
    };
    let conditions = match source.dimension {
        None => Conditions::of_runs(&query.filter),
        Some(dimension) => Conditions::of_dimension(dimension, query.filter.projects.as_deref()),
    };
    let conditions = match source.time {
        "t.hour" => conditions
            .millis("t.hour >= toDateTime(fromUnixTimestamp64Milli({from:Int64}))", "from", from)
            .millis("t.hour < toDateTime(fromUnixTimestamp64Milli({to:Int64}))", "to", to),
        _ => conditions
            .millis("t.at >= fromUnixTimestamp64Milli({from:Int64})", "from", from)
            .millis("t.at < fromUnixTimestamp64Milli({to:Int64})", "to", to),
    };
    let conditions = conditions.with_text("zone", query.time_zone.clone());
    let cells = cells(client, query, &source, conditions).await?;
    let (mut totals, mut rows) = (Vec::new(), Vec::new());
    for cell in cells {
        match cell.start {
            0 => totals.push(cell.sums(query.group_by)),
            start => rows.push(BucketSums {
                start: rfc3339(start * 1_000),
                sums: cell.sums(query.group_by),
            }),
        }
    }
    if query.group_by.is_none() && totals.is_empty() {
        totals.push(Cell { listed: 1, ..Cell::default() }.sums(None));
    }
    Ok(Analytics {
        as_of: rfc3339(as_of),
        from: rfc3339(from),
        to: rfc3339(to),
        bucket: query.bucket,
        time_zone: query.time_zone.clone(),
        group_by: query.group_by,
        buckets: starts(query.bucket, &zone, from, to)?.into_iter().map(rfc3339).collect(),
        totals,
        rows,
    })
}

fn floor(at: Millis) -> Millis {
    at.div_euclid(HOUR_MS) * HOUR_MS
}

/// The totals of each group, the one with the most jobs first, and the sums of each bucket, in order.
async fn cells(
    client: &Client,
    query: &AnalyticsQuery,
    source: &Source,
    conditions: Conditions,
) -> anyhow::Result<Vec<Cell>> {
    let group = match query.group_by {
        None => "''",
        Some(_) if source.dimension.is_some() => "t.value",
        Some(GroupBy::Project) => "t.project",
        Some(GroupBy::Model) => "toString(t.model)",
        Some(GroupBy::Type) => "toString(t.type)",
        Some(GroupBy::Outcome) => "toString(t.outcome)",
        Some(GroupBy::ErrorGroup) => {
            "if(t.error_group = 0, '', lower(leftPad(hex(t.error_group), 16, '0')))"
        }
        Some(GroupBy::Processor) => "toString(t.worker)",
    };
    let time = source.time;
    let start = match query.bucket {
        Bucket::Minute => format!("toStartOfMinute(toDateTime({time}, {{zone:String}}))"),
        Bucket::Hour => format!("toStartOfHour(toDateTime({time}, {{zone:String}}))"),
        Bucket::Day => format!("toStartOfDay(toDateTime({time}, {{zone:String}}))"),
        Bucket::Week => format!(
            "toDateTime(toStartOfWeek(toDateTime({time}, {{zone:String}}), 1), {{zone:String}})"
        ),
    };
    let Source { table, columns, durations, waits, .. } = source;
    let filter = conditions.sql();
    let (is_listed, conditions) = match query.group_by {
        None => ("true", conditions),
        Some(_) => {
            let sql = format!(
                "SELECT {group} AS name FROM {table} AS t WHERE {filter} GROUP BY name
                ORDER BY {} DESC, name LIMIT {}",
                source.jobs, query.groups_max
            );
            let names: Vec<String> = conditions.query(client, &sql).fetch_all().await?;
            ("has({listed:Array(String)}, name)", conditions.with_texts("listed", names))
        }
    };
    let finite = |digest: &str| format!("arrayMap(q -> if(isNaN(q), 0, toFloat64(q)), {digest})");
    let percentiles = format!("{} AS durations, {} AS waits", finite(durations), finite(waits));
    let sums_of = |what: &str, is_listed: &str, filter: &str| {
        format!(
            "WITH {group} AS name, {is_listed} AS is_listed
            SELECT toInt64(toUnixTimestamp({start})) AS start, if(is_listed, name, '') AS group,
                toUInt8(is_listed) AS listed, {what}
            FROM {table} AS t WHERE {filter}
            GROUP BY GROUPING SETS ((start, group, listed), (group, listed))"
        )
    };
    let order = "ORDER BY start, listed DESC, completed + failed + canceled DESC, group";
    // Of many groups few are listed: only their digests are read. Rows of runs have none, and are read once.
    let has_own_query = query.group_by == Some(GroupBy::Project) && source.has_digests();
    let percentiles_here = if has_own_query { NO_PERCENTILES } else { &percentiles };
    let sql = sums_of(&format!("{columns}, {percentiles_here}"), is_listed, &filter);
    let mut cells: Vec<Cell> =
        conditions.query(client, &format!("{sql} {order}")).fetch_all().await?;
    if has_own_query {
        let filter = format!("{filter} AND {group} IN {{listed:Array(String)}}");
        let sql = sums_of(&percentiles, "true", &filter);
        let digests: Vec<Percentiles> = conditions.query(client, &sql).fetch_all().await?;
        let digests =
            digests.into_iter().map(|it| ((it.start, it.group), (it.durations, it.waits)));
        let mut digests: HashMap<(i64, String), (Vec<f64>, Vec<f64>)> = digests.collect();
        for cell in cells.iter_mut().filter(|cell| cell.listed == 1) {
            let found = digests.remove(&(cell.start, cell.group.clone()));
            (cell.durations, cell.waits) = found.unwrap_or_default();
        }
    }
    Ok(cells)
}

/// The start of each bucket from the one of `from` on.
fn starts(
    bucket: Bucket,
    zone: &TimeZone,
    from: Millis,
    to: Millis,
) -> anyhow::Result<Vec<Millis>> {
    let first = Timestamp::from_millisecond(from)?.to_zoned(zone.clone());
    let (mut start, step): (Zoned, Span) = match bucket {
        Bucket::Minute => (first.round((Unit::Minute, 1))?, Span::new().minutes(1)),
        Bucket::Hour => (first.round((Unit::Hour, 1))?, Span::new().hours(1)),
        Bucket::Day => (first.start_of_day()?, Span::new().days(1)),
        Bucket::Week => {
            let days = first.weekday().since(Weekday::Monday);
            (first.checked_sub(Span::new().days(days))?.start_of_day()?, Span::new().weeks(1))
        }
    };
    // The rounding of jiff goes to the nearest.
    if start.timestamp().as_millisecond() > from {
        start = start.checked_sub(step)?;
    }
    let mut starts = Vec::new();
    while start.timestamp().as_millisecond() < to {
        starts.push(start.timestamp().as_millisecond());
        start = start.checked_add(step)?;
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> Millis {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn texts(bucket: Bucket, zone: &str, from: &str, to: &str) -> Vec<String> {
        let zone = TimeZone::get(zone).unwrap();
        let starts = starts(bucket, &zone, millis(from), millis(to)).unwrap();
        starts.into_iter().map(rfc3339).collect()
    }

    #[test]
    fn buckets_start_at_the_boundaries_of_the_time_zone() {
        let days =
            texts(Bucket::Day, "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
        // The clock goes back an hour on the 25th.
        assert_eq!(
            days,
            ["2026-10-23T22:00:00.000Z", "2026-10-24T22:00:00.000Z", "2026-10-25T23:00:00.000Z"]
        );
        let weeks = texts(Bucket::Week, "UTC", "2026-11-27T00:00:00Z", "2026-11-30T00:00:01Z");
        assert_eq!(weeks, ["2026-11-23T00:00:00.000Z", "2026-11-30T00:00:00.000Z"]);
        let hours =
            texts(Bucket::Hour, "Asia/Kolkata", "2026-11-27T00:45:00Z", "2026-11-27T01:31:00Z");
        assert_eq!(hours, ["2026-11-27T00:30:00.000Z", "2026-11-27T01:30:00.000Z"]);
        let minutes = texts(Bucket::Minute, "UTC", "2026-11-27T00:00:59Z", "2026-11-27T00:01:01Z");
        assert_eq!(minutes, ["2026-11-27T00:00:00.000Z", "2026-11-27T00:01:00.000Z"]);
    }
}
