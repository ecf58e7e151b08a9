//! What an operator may set of the state service.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nats::{Broker, publish::Writes};
use service::{Nats, prometheus};

use crate::spill::SpillStore;

/// Settings of the state service.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The address of NATS.
    #[command(flatten)]
    pub nats: Nats,
    /// The address of its measurements.
    #[command(flatten)]
    pub measurements: prometheus::Listen,
    /// The attempts of a job whose request sets no number.
    #[arg(long, env = "JOBMESH_MAX_ATTEMPTS", default_value_t = 3)]
    pub max_attempts: u32,
    /// The wait after a first failed attempt, in ms; each further failure doubles it.
    #[arg(long, env = "JOBMESH_RETRY_BASE_MS", default_value_t = 1_000)]
    pub retry_base_ms: i64,
    /// The longest wait between attempts, in ms.
    #[arg(long, env = "JOBMESH_RETRY_CAP_MS", default_value_t = 300_000)]
    pub retry_cap_ms: i64,
    /// How long a job may be deferred in a row before it fails, in seconds, for projects without a
    /// setting.
    #[arg(long, env = "JOBMESH_MAX_DEFERRAL_S", default_value_t = 24 * 3_600)]
    pub max_deferral_s: u32,
    /// The most running jobs of a project that sets no number; 0 is no limit.
    #[arg(long, env = "JOBMESH_MAX_CONCURRENCY", default_value_t = 0)]
    pub max_concurrency: u32,
    /// The most runs that a project may start in any 60 s if it sets no number; 0 is no limit.
    #[arg(long, env = "JOBMESH_REQUESTS_PER_MINUTE", default_value_t = 0)]
    pub requests_per_minute: u32,
    /// The tokens in 60 s beyond which a project starts nothing if it sets no number; 0 is no
    /// limit.
    #[arg(long, env = "JOBMESH_TOKENS_PER_MINUTE", default_value_t = 0)]
    pub tokens_per_minute: u64,
    /// The most active jobs of a project for which no admin sets a number; 0 is no limit.
    #[arg(long, env = "JOBMESH_MAX_ACTIVE_JOBS", default_value_t = 0)]
    pub max_active_jobs: u32,
    /// The most bytes of data of the active jobs of a project for which no admin sets a number; 0 is no
    /// limit.
    #[arg(long, env = "JOBMESH_MAX_ACTIVE_BYTES", default_value_t = 0)]
    pub max_active_bytes: u64,
    /// The most jobs of a project that may be enqueued in any 60 s, if no admin sets a number; 0 is no limit.
    #[arg(long, env = "JOBMESH_ENQUEUES_PER_MINUTE", default_value_t = 0)]
    pub enqueues_per_minute: u32,
    /// The most schedules of a project for which no admin sets a number.
    #[arg(long, env = "JOBMESH_MAX_SCHEDULES", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub max_schedules: u32,
    /// The most memory for the settings and schedules of all projects, in MB; a change beyond it gets 409.
    #[arg(long, env = "JOBMESH_SETTINGS_MB", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub settings_mb: u32,
    /// The share of starts that each class below the first one that waits keeps, in percent.
    #[arg(long, env = "JOBMESH_LOWER_SHARE_PERCENT", default_value_t = 10,
          value_parser = clap::value_parser!(u8).range(0..=30))]
    pub lower_share_percent: u8,
    /// The last priority number of class high.
    #[arg(long, env = "JOBMESH_HIGH_MAX", default_value_t = 5)]
    pub high_max: u16,
    /// The last priority number of class normal; higher numbers are low.
    #[arg(long, env = "JOBMESH_NORMAL_MAX", default_value_t = 10)]
    pub normal_max: u16,
    /// How long an ended job is kept in the bucket, in seconds.
    #[arg(long, env = "JOBMESH_RETENTION_S", default_value_t = 7 * 24 * 3_600)]
    pub retention_s: u32,
    /// How long events are kept for those who read them, in seconds.
    #[arg(long, env = "JOBMESH_EVENTS_RETENTION_S", default_value_t = 7 * 24 * 3_600)]
    pub events_retention_s: u32,
    /// How often a snapshot is written, in seconds.
    #[arg(long, env = "JOBMESH_SNAPSHOT_EVERY_S", default_value_t = 30)]
    pub snapshot_every_s: u32,
    /// How much memory jobs may take before those that wait go to files without a name, to be
    /// read again when their turn comes, in MB.
    #[arg(long, env = "JOBMESH_JOB_MEMORY_MB", default_value_t = 16)]
    pub job_memory_mb: u32,
    /// A folder on a disk for those files; the system's temporary folder if absent.
    #[arg(long, env = "JOBMESH_SPILL_DIR")]
    pub spill_dir: Option<PathBuf>,
    /// Accept reports of processors that do not repeat the token of their run: those of version 0.1 before there
    /// were tokens. Any processor can then report on runs of others.
    #[arg(long, env = "JOBMESH_ALLOW_MISSING_RUN_TOKENS")]
    pub allow_missing_run_tokens: bool,
    /// Write the bucket, and ready work in streams of earlier versions, message behind message, not in
    /// atomic batches: less work for a broker that syncs by the clock, much more for one that syncs each
    /// message. With more than one replica it changes nothing.
    #[arg(long, env = "JOBMESH_PIPELINED_WRITES")]
    pub pipelined_writes: bool,
}

impl Config {
    /// The rules that decisions are made with.
    pub(crate) fn rules(&self) -> job::Config {
        job::Config {
            bands: job::Bands { high_max: self.high_max, normal_max: self.normal_max },
            max_attempts: self.max_attempts,
            backoff: job::Backoff {
                base_ms: self.retry_base_ms,
                cap_ms: self.retry_cap_ms,
                ..job::Backoff::default()
            },
            max_deferral_ms: i64::from(self.max_deferral_s) * 1_000,
            retention_ms: i64::from(self.retention_s) * 1_000,
            lower_share_percent: self.lower_share_percent,
            limits: job::Limits {
                max_concurrency: self.max_concurrency,
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                max_active_jobs: self.max_active_jobs,
                max_active_bytes: self.max_active_bytes,
                enqueues_per_minute: self.enqueues_per_minute,
                max_schedules: self.max_schedules,
            },
            settings_bytes_max: u64::from(self.settings_mb) * 1_000_000,
            ..job::Config::default()
        }
    }

    /// A state that knows nothing yet.
    pub(crate) fn empty_state(&self) -> job::State {
        let dir = self.spill_dir.clone().unwrap_or_else(std::env::temp_dir);
        let budget = self.job_memory_mb as usize * 1_000_000;
        let retention_ms = i64::from(self.retention_s) * 1_000;
        job::State::new(retention_ms).with_spill(Arc::new(SpillStore::in_dir(&dir)), budget)
    }

    /// How many messages are written at once.
    pub(crate) fn writes(&self, broker: &Broker) -> Writes {
        let replicas = self.nats.sizes().replicas_in(broker.is_in_cluster());
        if self.pipelined_writes && replicas == 1 { Writes::Pipelined } else { Writes::Atomic }
    }

    pub(crate) fn snapshot_every(&self) -> Duration {
        Duration::from_secs(u64::from(self.snapshot_every_s.max(1)))
    }
}
