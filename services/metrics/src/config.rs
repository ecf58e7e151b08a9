//! What an operator may set of metrics.

use service::Nats;

/// Settings of metrics.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: Nats,
    /// The URL of ClickHouse's HTTP interface.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_URL", default_value = "http://127.0.0.1:8123")]
    pub clickhouse_url: String,
    /// ClickHouse's database, made where it is missing.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_DATABASE", default_value = "jobmesh")]
    pub clickhouse_database: String,
    /// ClickHouse's user.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_USER")]
    pub clickhouse_user: Option<String>,
    /// ClickHouse's password.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_PASSWORD", hide_env_values = true)]
    pub clickhouse_password: Option<String>,
}

impl Config {
    /// A client without a database, to make it.
    pub(crate) fn bare_client(&self) -> clickhouse::Client {
        let mut client = clickhouse::Client::default()
            .with_url(&self.clickhouse_url)
            .with_compression(clickhouse::Compression::None);
        if let Some(user) = &self.clickhouse_user {
            client = client.with_user(user);
        }
        if let Some(password) = &self.clickhouse_password {
            client = client.with_password(password);
        }
        client
    }

    /// A client for the tables.
    pub(crate) fn client(&self) -> clickhouse::Client {
        self.bare_client().with_database(&self.clickhouse_database)
    }
}
