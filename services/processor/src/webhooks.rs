//! Deliveries to webhooks: a runner beside that of jobs, with slots of its own.

use job::JobType;
use tokio_util::sync::CancellationToken;

use crate::{Config, Registry, handlers, run};

/// Settings of the deliveries to webhooks.
#[derive(Clone, Debug, clap::Args)]
pub struct Webhooks {
    /// How many deliveries to webhooks this processor makes at once, beside its jobs; 0 for none.
    #[arg(long, env = "JOBMESH_WEBHOOK_CONCURRENCY", default_value_t = 128)]
    pub webhook_concurrency: usize,
    /// True if webhooks may be on private networks and on this machine: the owner of a project's
    /// webhook can then reach everything that this processor can.
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

/// Tells webhooks of the ends of jobs until `stop` is cancelled, beside a processor with the
/// settings `config`: in slots of their own, so that neither waits for the other.
///
/// # Errors
/// If NATS cannot be used at all, or the machine's certificates cannot be read.
pub async fn deliver(
    config: &Config,
    webhooks: &Webhooks,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if webhooks.webhook_concurrency == 0 {
        return Ok(());
    }
    let webhook = handlers::Webhook::new(webhooks.webhook_private)?;
    let registry = Registry::new().with(JobType::Webhook, webhook);
    run(webhooks.runner(config), registry, stop).await
}
