//! Where NATS is, and what every service needs to be there.

use anyhow::Context;
use mesh::{
    Broker,
    topology::{self, Sizes},
};
use tokio_util::sync::CancellationToken;

/// Where NATS is.
#[derive(Clone, Debug, clap::Args)]
pub struct Nats {
    /// The URL of a NATS server with JetStream.
    #[arg(long, env = "JOBMESH_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub nats_url: String,
    /// On how many servers of a cluster each stream is kept. Read where a stream is made.
    #[arg(long, env = "JOBMESH_REPLICAS", default_value_t = 1)]
    pub replicas: usize,
    /// The size of COMMANDS in MB, so with the next. Read where a stream is made.
    #[arg(long, env = "JOBMESH_COMMANDS_MB", default_value_t = 2_048)]
    pub commands_mb: u32,
    /// The size of EVENTS in MB.
    #[arg(long, env = "JOBMESH_EVENTS_MB", default_value_t = 4_096)]
    pub events_mb: u32,
    /// The size of each stream of ready work in MB.
    #[arg(long, env = "JOBMESH_WORK_MB", default_value_t = 512)]
    pub work_mb: u32,
    /// The size of the bucket of jobs in MB.
    #[arg(long, env = "JOBMESH_JOBS_MB", default_value_t = 8_192)]
    pub jobs_mb: u32,
    /// The size of the object store of large results in MB.
    #[arg(long, env = "JOBMESH_RESULTS_MB", default_value_t = 8_192)]
    pub results_mb: u32,
}

impl Nats {
    /// Connects as `name` and ensures streams and buckets; `None` where `stop` came first.
    ///
    /// # Errors
    /// Where streams are there that break the rules.
    pub async fn connect(
        &self,
        name: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Broker>> {
        let Some(broker) = Broker::connect_until(&self.nats_url, name, stop).await else {
            return Ok(None);
        };
        let bytes = |mb: u32| i64::from(mb) << 20;
        let sizes = Sizes {
            commands_bytes: bytes(self.commands_mb),
            events_bytes: bytes(self.events_mb),
            work_bytes: bytes(self.work_mb),
            jobs_bytes: bytes(self.jobs_mb),
            results_bytes: bytes(self.results_mb),
            replicas: self.replicas,
        };
        loop {
            match topology::ensure(&broker, sizes).await {
                Ok(()) => return Ok(Some(broker)),
                Err(
                    error @ (topology::Error::Mismatch { .. } | topology::Error::Payload { .. }),
                ) => {
                    return Err(error).context("the NATS account is not usable");
                }
                Err(error) => {
                    tracing::warn!(error = %error, "streams not ensured yet, trying again")
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(std::time::Duration::from_millis(250)) => {}
            }
        }
    }
}
