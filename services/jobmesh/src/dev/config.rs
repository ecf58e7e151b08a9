//! The flags of `dev`.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use nats::access::Secret;
use service::{NatsLogin, NatsUrl};

/// When acked messages are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// Before the ack: each is fsynced.
    Always,
    /// Within a second: a power cut may lose that second.
    Fast,
}

/// Settings of `dev`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The address to listen on for HTTP. Free ports are chosen for everything else.
    #[arg(long, env = "JOBMESH_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The folder for all data: streams, tables, logs.
    #[arg(long, env = "JOBMESH_DATA_DIR", default_value = "jobmesh-data")]
    pub data_dir: PathBuf,
    /// The directory of a backup to restore first, into a data directory without streams and tables.
    #[arg(long, conflicts_with_all = ["nats_url", "clickhouse_url"])]
    pub restore: Option<PathBuf>,
    /// How many state services run: one leads, the others answer questions and stand by.
    #[arg(long, env = "JOBMESH_STATES", default_value_t = 1)]
    pub states: usize,
    /// How many processors run.
    #[arg(long, env = "JOBMESH_PROCESSORS", default_value_t = 1)]
    pub processors: usize,
    /// How many jobs each processor runs at once.
    #[arg(long, env = "JOBMESH_CONCURRENCY", default_value = "8")]
    pub concurrency: NonZeroUsize,
    /// How long running jobs may go on after Ctrl-C before they are handed back, in seconds.
    #[arg(long, env = "JOBMESH_GRACE_S", default_value_t = 20)]
    pub grace_s: u32,
    /// When acked messages are on disk.
    #[arg(long, env = "JOBMESH_DURABILITY", value_enum, default_value = "always")]
    pub durability: Durability,
    /// A NATS server to use instead of an own one.
    #[arg(long, env = "JOBMESH_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<NatsUrl>,
    #[command(flatten)]
    pub login: NatsLogin,
    /// A ClickHouse server to use instead of the engine as a library.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_URL", hide_env_values = true)]
    pub clickhouse_url: Option<Secret>,
    /// Refuse requests without an API key, even while there is no key.
    #[arg(long, env = "JOBMESH_REQUIRE_KEYS")]
    pub require_keys: bool,
    /// Let each service serve measurements for Prometheus; prometheus-targets.json in the data directory lists where.
    #[arg(long, env = "JOBMESH_METRICS")]
    pub metrics: bool,
    /// Allow an address that others can reach without --require-keys.
    #[arg(long, env = "JOBMESH_INSECURE")]
    pub insecure: bool,
}
