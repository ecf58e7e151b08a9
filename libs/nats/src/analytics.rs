//! Sums over a range of time: what metrics answers, and the edge hands on as it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far back sums reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Range {
    /// 24 hours.
    #[serde(rename = "24h")]
    Day,
    /// 7 days.
    #[serde(rename = "7d")]
    Week,
    /// 30 days.
    #[serde(rename = "30d")]
    Month,
    /// From the first job on.
    #[serde(rename = "all")]
    All,
}

impl Range {
    /// All ranges.
    pub const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::All];

    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
            Self::All => "all",
        }
    }
}

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

/// The length of a bucket of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum Bucket {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day of the time zone.
    Day,
    /// A week of the time zone, from Monday.
    Week,
}

impl Bucket {
    /// All lengths.
    pub const ALL: [Self; 4] = [Self::Minute, Self::Hour, Self::Day, Self::Week];

    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
        }
    }
}

/// What runs are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum GroupBy {
    /// The project.
    Project,
    /// The model; empty for runs that named none.
    Model,
    /// The type of job.
    Type,
    /// The outcome of the run.
    Outcome,
    /// The error group; empty for runs without an error.
    ErrorGroup,
    /// The processor; empty for jobs that ended without a run.
    Processor,
}

impl GroupBy {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Project, Self::Model, Self::Type, Self::Outcome, Self::ErrorGroup, Self::Processor];

    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Model => "model",
            Self::Type => "type",
            Self::Outcome => "outcome",
            Self::ErrorGroup => "errorGroup",
            Self::Processor => "processor",
        }
    }
}

/// Sums by bucket and group.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Analytics {
    /// Up to when ends of runs are counted, RFC 3339.
    pub as_of: String,
    /// The first time, RFC 3339: the requested one, or the start of its hour.
    pub from: String,
    /// The time after the last one, RFC 3339: the requested one, or the end of its hour.
    pub to: String,
    /// The length of a bucket.
    pub bucket: Bucket,
    /// The time zone in which buckets start.
    pub time_zone: String,
    /// What is summed apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_by: Option<GroupBy>,
    /// The start of each bucket, RFC 3339, also of those without runs.
    pub buckets: Vec<String>,
    /// The sums of each group, the one with the most jobs first.
    pub totals: Vec<Sums>,
    /// The sums of each bucket and group that has runs.
    pub rows: Vec<BucketSums>,
}

/// What runs sum up to. Durations and waits are in ms.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Sums {
    /// The group; absent without groups.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// True for the sum of all groups that are not listed. It has no percentiles.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub is_other: bool,
    /// Ends of jobs.
    pub jobs: u64,
    /// Those that completed.
    pub completed: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were canceled.
    pub canceled: u64,
    /// Runs with an outcome of their own.
    pub runs: u64,
    /// Runs that failed and were followed by another attempt.
    pub retries: u64,
    /// Runs whose processor went offline.
    pub lost_runs: u64,
    /// The share of completed among completed and failed; 0 of nothing.
    pub success_rate: f64,
    /// How long runs took.
    pub duration: Distribution,
    /// How long jobs waited before a run.
    pub wait: Distribution,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Tokens of runs that failed, were lost, or ended too late to count.
    pub wasted_tokens: u64,
}

/// The sums of one bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BucketSums {
    /// The start of the bucket, RFC 3339.
    pub start: String,
    /// Its sums.
    #[serde(flatten)]
    pub sums: Sums,
}

/// A mean and estimated percentiles, in ms.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Distribution {
    /// The mean.
    pub avg: f64,
    /// The median; absent for groups that are not listed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p50: Option<f64>,
    /// The 95th percentile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p95: Option<f64>,
    /// The 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p99: Option<f64>,
}
