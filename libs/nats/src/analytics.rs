//! Sums over a range of time: what metrics answers, and the edge hands on as it is.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::query::Range;

/// Sums over a range of time. Durations and waits are in ms.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// The range.
    pub time_range: Range,
    /// Up to when ends of jobs are counted, RFC 3339.
    pub as_of: String,
    /// Ends of jobs.
    pub total: u64,
    /// Those that completed.
    pub successful: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were canceled.
    pub canceled: u64,
    /// The share of completed among completed and failed; 0 of nothing.
    pub success_rate: f64,
    /// The mean duration of a run.
    pub avg_duration: f64,
    /// The shortest run.
    pub min_duration: u64,
    /// The longest run.
    pub max_duration: u64,
    /// The median, estimated.
    pub p50_duration: f64,
    /// The 95th percentile, estimated.
    pub p95_duration: f64,
    /// The 99th percentile, estimated.
    pub p99_duration: f64,
    /// The mean wait before a run.
    pub avg_wait: f64,
    /// Tokens read and written.
    pub total_tokens: u64,
    /// Tokens read.
    pub total_input_tokens: u64,
    /// Tokens written.
    pub total_output_tokens: u64,
    /// By type of job.
    pub by_type: BTreeMap<String, Part>,
    /// By model, for runs that named one.
    pub by_model: BTreeMap<String, Part>,
    /// One each hour of the range, oldest first.
    pub hourly_breakdown: Vec<Period>,
    /// One each day of the range, oldest first; for `30d` and `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily_breakdown: Option<Vec<Period>>,
}

/// What one type of job, or one model, has of it.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Ends of jobs.
    pub count: u64,
    /// Those that completed.
    pub successful: u64,
    /// Those that failed.
    pub failed: u64,
    /// The mean duration of a run.
    pub avg_duration: f64,
    /// Tokens read and written.
    pub total_tokens: u64,
}

/// One hour, or one day.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Period {
    /// The hour it begins, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<String>,
    /// The day it begins, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// Ends of jobs.
    pub count: u64,
    /// Those that completed.
    pub successful: u64,
    /// Those that failed.
    pub failed: u64,
    /// The mean duration of a run.
    pub avg_duration: f64,
    /// Tokens read and written.
    pub total_tokens: u64,
}
