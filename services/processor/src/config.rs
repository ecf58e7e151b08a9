//! What an operator may set of a processor.

use std::time::Duration;

use service::{Nats, prometheus};

/// Settings of a processor.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The address of NATS.
    #[command(flatten)]
    pub nats: Nats,
    /// The address of its measurements.
    #[command(flatten)]
    pub measurements: prometheus::Listen,
    /// How many jobs this processor runs at once.
    #[arg(long, env = "JOBMESH_CONCURRENCY", default_value_t = 8)]
    pub concurrency: usize,
    /// How long a handler may take for one run, in seconds.
    #[arg(long, env = "JOBMESH_TIME_LIMIT_S", default_value_t = 600)]
    pub time_limit_s: u32,
    /// The largest result of a job, in MB; results above 256 KB go to the result store.
    #[arg(long, env = "JOBMESH_RESULT_MAX_MB", default_value_t = 16)]
    pub result_max_mb: u32,
    /// How long running jobs may go on after SIGTERM before they are handed back, in seconds.
    #[arg(long, env = "JOBMESH_GRACE_S", default_value_t = 20)]
    pub grace_s: u32,
}

impl Config {
    pub(crate) fn time_limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.time_limit_s))
    }

    /// The largest result, in bytes.
    pub fn result_bytes_max(&self) -> usize {
        (self.result_max_mb as usize) << 20
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.grace_s))
    }
}
