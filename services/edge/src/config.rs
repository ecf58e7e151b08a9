//! What an operator may set of the edge.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use ::traces::Otlp;
use axum::http::HeaderValue;
use service::{Nats, prometheus};
use url::Url;

use crate::proxies::ProxyNetwork;

/// The origin of a web page: scheme, host and port, as browsers write it.
#[derive(Clone, Debug)]
pub struct Origin(pub(crate) HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: Url = text.parse().map_err(|error| format!("it is not a URL: {error}"))?;
        let origin = url.origin().ascii_serialization();
        if !matches!(url.scheme(), "http" | "https") || origin != text {
            return Err(format!(
                "an origin has a scheme and a host and nothing else; did you mean {origin}?"
            ));
        }
        HeaderValue::try_from(origin).map(Self).map_err(|error| error.to_string())
    }
}

/// Settings of the edge.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The address of NATS.
    #[command(flatten)]
    pub nats: Nats,
    /// The address of its measurements.
    #[command(flatten)]
    pub measurements: prometheus::Listen,
    /// The collector of its traces.
    #[command(flatten)]
    pub otlp: Otlp,
    /// The address to listen on for HTTP.
    #[arg(long, env = "JOBMESH_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Refuse requests without an API key, even while there is no key. Once there is one, they are
    /// refused in any case.
    #[arg(long, env = "JOBMESH_REQUIRE_KEYS")]
    pub require_keys: bool,
    /// Allow an address that others can reach without --require-keys.
    #[arg(long, env = "JOBMESH_INSECURE")]
    pub insecure: bool,
    /// Names under which clients reach this edge, such as queue.example.com or edge:8080. Addresses and
    /// localhost are always allowed; a request for another name is refused.
    #[arg(long = "allow-host", env = "JOBMESH_ALLOW_HOSTS", value_delimiter = ',')]
    pub allow_hosts: Vec<String>,
    /// Sites whose web pages may use the API, such as `https://console.example.com`.
    #[arg(long = "allow-origin", env = "JOBMESH_ALLOW_ORIGINS", value_delimiter = ',')]
    pub allow_origins: Vec<Origin>,
    /// The file with the certificate chain (PEM) for HTTPS; plain HTTP is not served then. It is read again
    /// when it changes.
    #[arg(long, env = "JOBMESH_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The file with the certificate's private key (PEM).
    #[arg(long, env = "JOBMESH_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Connections that are served at the same time; a request on one beyond that gets 503.
    #[arg(long, env = "JOBMESH_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
    /// The same for each address, which gets 429. Clients behind one proxy share an address.
    #[arg(long, env = "JOBMESH_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 8_000)]
    pub max_connections_per_address: usize,
    /// Proxies whose header X-Forwarded-For names the client, for the audit log: addresses or networks such as
    /// 10.0.0.0/8. Their connections are limited in total only.
    #[arg(long = "trusted-proxy", env = "JOBMESH_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<ProxyNetwork>,
    /// Event streams, and requests that wait for the end of a job, of one API key at the same time; a further
    /// one gets 429.
    #[arg(long, env = "JOBMESH_MAX_WAITING_PER_KEY", default_value_t = 1_000)]
    pub max_waiting_per_key: usize,
    /// The same of one project, with any API key or none.
    #[arg(long, env = "JOBMESH_MAX_WAITING_PER_PROJECT", default_value_t = 4_000)]
    pub max_waiting_per_project: usize,
    /// How long the broker may take to confirm a command before the answer is 503, in ms; the time to connect again is
    /// part of it.
    #[arg(long, env = "JOBMESH_CONFIRM_MS", default_value_t = 2_000)]
    pub confirm_ms: u64,
    /// How long a command may wait until state has processed it before the answer is 202, in ms.
    #[arg(long, env = "JOBMESH_REPLY_MS", default_value_t = 900)]
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
