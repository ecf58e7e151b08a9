//! What an operator may set of a processor.

use std::time::Duration;

use service::Nats;

/// Settings of a processor.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: Nats,
    /// How many jobs this processor runs at once.
    #[arg(long, env = "JOBMESH_CONCURRENCY", default_value_t = 8)]
    pub concurrency: usize,
    /// How long a handler may take for one run, in seconds.
    #[arg(long, env = "JOBMESH_TIME_LIMIT_S", default_value_t = 600)]
    pub time_limit_s: u32,
    /// How long running jobs may go on after SIGTERM before they are handed back, in seconds.
    #[arg(long, env = "JOBMESH_GRACE_S", default_value_t = 20)]
    pub grace_s: u32,
}

/// Settings of the deliveries to webhooks.
#[derive(Clone, Debug, clap::Args)]
pub struct Webhooks {
    /// How many deliveries to webhooks this processor makes at once, beside its jobs; 0 for none.
    #[arg(long, env = "JOBMESH_WEBHOOK_CONCURRENCY", default_value_t = 128)]
    pub webhook_concurrency: usize,
    /// Whether webhooks may be on private networks and on this machine: whoever may set a
    /// project's webhook can then reach what this processor can.
    #[arg(long, env = "JOBMESH_WEBHOOK_PRIVATE")]
    pub webhook_private: bool,
}

impl Webhooks {
    /// The settings of the runner of deliveries in a processor with these.
    pub(crate) fn runner(&self, processor: &Config) -> Config {
        Config {
            concurrency: self.webhook_concurrency,
            // Their own client waits for less.
            time_limit_s: 60,
            ..processor.clone()
        }
    }
}

impl Config {
    pub(crate) fn time_limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.time_limit_s))
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.grace_s))
    }
}
