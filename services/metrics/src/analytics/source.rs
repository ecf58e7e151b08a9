//! Which table answers a query.

use jiff::{Timestamp, tz::TimeZone};
use job::time::Millis;
use nats::{
    analytics::{Bucket, GroupBy},
    query::{AnalyticsQuery, RunFilter},
};

use super::floor;

/// What is read.
pub(super) struct Source {
    pub table: &'static str,
    /// The time of a row.
    pub time: &'static str,
    /// The dimension of its rows, if there are rows of several.
    pub dimension: Option<&'static str>,
    /// The sums, by the names of [`Cell`](super::Cell).
    pub columns: &'static str,
    /// The ends of jobs.
    pub jobs: &'static str,
    /// The percentiles of the durations of listed groups.
    pub durations: &'static str,
    /// The percentiles of their waits.
    pub waits: &'static str,
}

const RUNS: Source = Source {
    table: "job_runs",
    time: "t.at",
    dimension: None,
    columns: "countIf(t.final AND t.outcome = 'completed') AS completed,
        countIf(t.final AND t.outcome = 'failed') AS failed,
        countIf(t.final AND t.outcome = 'canceled') AS canceled,
        countIf(t.ran) AS runs, countIf(t.outcome = 'retry') AS retries,
        countIf(t.outcome = 'lost') AS lost_runs,
        sumIf(t.duration_ms, t.ran) AS duration_sum, sumIf(t.wait_ms, t.ran) AS wait_sum,
        sum(t.tokens_in) AS tokens_in, sum(t.tokens_out) AS tokens_out,
        sumIf(t.tokens_in + t.tokens_out, t.outcome IN ('retry', 'failed', 'lost', 'refused'))
            AS wasted_tokens",
    jobs: "countIf(t.final)",
    durations: "quantilesTDigestIf(0.5, 0.95, 0.99)(t.duration_ms, t.ran AND is_listed)",
    waits: "quantilesTDigestIf(0.5, 0.95, 0.99)(t.wait_ms, t.ran AND is_listed)",
};
const HOURS: Source = Source {
    table: "runs_by_hour",
    time: "t.hour",
    dimension: None,
    columns: "sum(t.completed) AS completed, sum(t.failed) AS failed,
        sum(t.canceled) AS canceled, sum(t.runs) AS runs, sum(t.retries) AS retries,
        sum(t.lost_runs) AS lost_runs,
        sum(t.duration_sum) AS duration_sum, sum(t.wait_sum) AS wait_sum,
        sum(t.tokens_in) AS tokens_in, sum(t.tokens_out) AS tokens_out,
        sum(t.wasted_tokens) AS wasted_tokens",
    jobs: "sum(t.completed + t.failed + t.canceled)",
    durations: "quantilesTDigestMergeIf(0.5, 0.95, 0.99)(t.durations, is_listed)",
    waits: "quantilesTDigestMergeIf(0.5, 0.95, 0.99)(t.wait_digest, is_listed)",
};
const PROJECT_HOURS: Source = Source { table: "runs_by_project_hour", ..HOURS };
const GROUP_HOURS: Source = Source { table: "runs_by_group_hour", ..HOURS };

impl Source {
    /// True if its rows are sums with digests, not runs.
    pub fn has_digests(&self) -> bool {
        self.table != RUNS.table
    }

    /// The cheapest table that has what is asked for.
    pub fn of(
        query: &AnalyticsQuery,
        zone: &TimeZone,
        groups_since: Millis,
    ) -> anyhow::Result<Self> {
        let filter = &query.filter;
        let mut has_whole_hours = true;
        for at in [query.from, query.to] {
            let offset = zone.to_offset(Timestamp::from_millisecond(at)?);
            has_whole_hours &= offset.seconds() % 3_600 == 0;
        }
        if query.bucket == Bucket::Minute || !has_whole_hours {
            return Ok(RUNS);
        }
        let is_whole = floor(query.from) >= groups_since;
        if let Some(dimension) = dimension(query).filter(|_| is_whole) {
            return Ok(Source { dimension: Some(dimension), ..GROUP_HOURS });
        }
        let is_in_hours = filter.processor.is_none()
            && filter.error_group.is_none()
            && matches!(
                query.group_by,
                None | Some(GroupBy::Project | GroupBy::Model | GroupBy::Type)
            );
        Ok(match (is_in_hours, &filter.projects, query.group_by) {
            (false, ..) => RUNS,
            (true, None, None | Some(GroupBy::Model | GroupBy::Type)) => HOURS,
            (true, ..) => PROJECT_HOURS,
        })
    }
}

/// The dimension of sums by group that has what is asked for; `None` if that takes two of them.
fn dimension(query: &AnalyticsQuery) -> Option<&'static str> {
    let RunFilter { projects, job_type, model, processor, error_group, from: _, to: _ } =
        &query.filter;
    let is_filtered =
        job_type.is_some() || model.is_some() || processor.is_some() || error_group.is_some();
    match (query.group_by, projects) {
        _ if is_filtered => None,
        (None, None) => Some("all"),
        (None, Some(_)) | (Some(GroupBy::Project), _) => Some("project"),
        (Some(_), Some(_)) => None,
        (Some(GroupBy::Model), None) => Some("model"),
        (Some(GroupBy::Type), None) => Some("type"),
        (Some(GroupBy::Outcome), None) => Some("outcome"),
        (Some(GroupBy::ErrorGroup), None) => Some("error_group"),
        (Some(GroupBy::Processor), None) => Some("processor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollups_answer_what_they_have() {
        let query = |bucket, time_zone: &str, group_by| AnalyticsQuery {
            filter: Default::default(),
            from: 0,
            to: 1,
            bucket,
            time_zone: time_zone.to_owned(),
            group_by,
            groups_max: 1,
        };
        let since = |query: &AnalyticsQuery, since| {
            Source::of(query, &TimeZone::get(&query.time_zone).unwrap(), since).unwrap().table
        };
        let table = |query: &AnalyticsQuery| since(query, 0);
        let project = Some(GroupBy::Project);
        assert_eq!(table(&query(Bucket::Day, "UTC", None)), "runs_by_group_hour");
        assert_eq!(since(&query(Bucket::Day, "UTC", None), 1), "runs_by_hour");
        assert_eq!(table(&query(Bucket::Day, "UTC", project)), "runs_by_group_hour");
        assert_eq!(since(&query(Bucket::Day, "UTC", project), 1), "runs_by_project_hour");
        assert_eq!(table(&query(Bucket::Day, "Asia/Kolkata", None)), "job_runs");
        assert_eq!(table(&query(Bucket::Minute, "UTC", None)), "job_runs");
        let outcome = query(Bucket::Day, "UTC", Some(GroupBy::Outcome));
        assert_eq!(table(&outcome), "runs_by_group_hour");
        assert_eq!(since(&outcome, 1), "job_runs");
        let filter = RunFilter { model: Some("m".to_owned()), ..RunFilter::default() };
        assert_eq!(table(&AnalyticsQuery { filter, ..outcome }), "job_runs");
    }
}
