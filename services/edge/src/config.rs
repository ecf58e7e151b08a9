//! What an operator may set of the edge.

use std::{net::SocketAddr, time::Duration};

use service::Nats;

/// Settings of the edge.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The address of NATS.
    #[command(flatten)]
    pub nats: Nats,
    /// The address to listen on for HTTP.
    #[arg(long, env = "JOBMESH_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Allow an address that others can reach, although the API has no keys.
    #[arg(long, env = "JOBMESH_INSECURE")]
    pub insecure: bool,
    /// How long the broker may take to confirm a command before the answer is 503, in ms.
    #[arg(long, env = "JOBMESH_CONFIRM_MS", default_value_t = 5_000)]
    pub confirm_ms: u64,
    /// How long a command may wait until state has processed it before the answer is 202, in ms.
    #[arg(long, env = "JOBMESH_REPLY_MS", default_value_t = 2_000)]
    pub reply_ms: u64,
}

impl Config {
    pub(crate) fn confirm(&self) -> Duration {
        Duration::from_millis(self.confirm_ms)
    }

    pub(crate) fn reply(&self) -> Duration {
        Duration::from_millis(self.reply_ms)
    }
}
