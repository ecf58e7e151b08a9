//! What an operator may set of the state service.

use std::time::Duration;

use service::Nats;

/// Settings of the state service.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: Nats,
    /// Attempts a job may use, where its request names no number.
    #[arg(long, env = "JOBMESH_MAX_ATTEMPTS", default_value_t = 3)]
    pub max_attempts: u32,
    /// The wait after a first failed attempt, in ms; each further failure doubles it.
    #[arg(long, env = "JOBMESH_RETRY_BASE_MS", default_value_t = 1_000)]
    pub retry_base_ms: i64,
    /// The longest wait between attempts, in ms.
    #[arg(long, env = "JOBMESH_RETRY_CAP_MS", default_value_t = 300_000)]
    pub retry_cap_ms: i64,
    /// Jobs that a project may run at once, where it sets no number; 0 is no limit.
    #[arg(long, env = "JOBMESH_MAX_CONCURRENCY", default_value_t = 0)]
    pub max_concurrency: u32,
    /// Runs that a project may start in any 60 s, where it sets no number; 0 is no limit.
    #[arg(long, env = "JOBMESH_REQUESTS_PER_MINUTE", default_value_t = 0)]
    pub requests_per_minute: u32,
    /// Tokens in 60 s beyond which a project starts nothing, where it sets no number; 0 is no
    /// limit.
    #[arg(long, env = "JOBMESH_TOKENS_PER_MINUTE", default_value_t = 0)]
    pub tokens_per_minute: u64,
    /// The share of starts that each class below the first one that waits keeps, in percent.
    #[arg(long, env = "JOBMESH_LOWER_SHARE_PERCENT", default_value_t = 10,
          value_parser = clap::value_parser!(u8).range(0..=30))]
    pub lower_share_percent: u8,
    /// How long an ended job is kept in the bucket, in seconds.
    #[arg(long, env = "JOBMESH_RETENTION_S", default_value_t = 7 * 24 * 3_600)]
    pub retention_s: u32,
    /// How long events are kept for those who read them, in seconds.
    #[arg(long, env = "JOBMESH_EVENTS_RETENTION_S", default_value_t = 7 * 24 * 3_600)]
    pub events_retention_s: u32,
    /// How often a snapshot is written, in seconds.
    #[arg(long, env = "JOBMESH_SNAPSHOT_EVERY_S", default_value_t = 30)]
    pub snapshot_every_s: u32,
}

impl Config {
    /// The rules that decisions are made with.
    pub(crate) fn rules(&self) -> job::Config {
        let defaults = job::Config::default();
        job::Config {
            max_attempts: self.max_attempts,
            backoff: job::Backoff {
                base_ms: self.retry_base_ms,
                cap_ms: self.retry_cap_ms,
                ..defaults.backoff
            },
            retention_ms: i64::from(self.retention_s) * 1_000,
            lower_share: f64::from(self.lower_share_percent) / 100.0,
            limits: job::Limits {
                max_concurrency: self.max_concurrency,
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
            },
            ..defaults
        }
    }

    pub(crate) fn snapshot_every(&self) -> Duration {
        Duration::from_secs(u64::from(self.snapshot_every_s.max(1)))
    }
}
