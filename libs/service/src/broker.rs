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
        let sizes = Sizes { replicas: self.replicas, ..Sizes::default() };
        loop {
            match topology::ensure(&broker, sizes).await {
                Ok(()) => return Ok(Some(broker)),
                Err(error @ topology::Error::Mismatch { .. }) => {
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
