//! What an operator may set of metrics.

use std::path::PathBuf;

use ::traces::Otlp;
use anyhow::{Context, bail, ensure};
use clap::value_parser;
use nats::access::Secret;
use percent_encoding::percent_decode_str;
use service::{Nats, prometheus};
use url::Url;

use crate::cluster::ClusterName;

/// The variable with ClickHouse's password.
const PASSWORD: &str = "JOBMESH_CLICKHOUSE_PASSWORD";

/// Settings of metrics.
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
    /// ClickHouse.
    #[command(flatten)]
    pub clickhouse: ClickHouseAccess,
    /// How long rows are kept.
    #[command(flatten)]
    pub retention: Retention,
}

/// The longest retention: ClickHouse computes the end of a TTL in seconds since 1970, in 32 bits.
const DAYS_MAX: i64 = 10_000;

/// How long rows are kept. A table whose days are not set stays as it is.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Retention {
    /// For how many days ended runs are kept in ClickHouse, 0 forever. The table stays as it is if not set.
    #[arg(long, env = "JOBMESH_RUNS_RETENTION_DAYS", value_parser = value_parser!(u32).range(..=DAYS_MAX))]
    pub runs_retention_days: Option<u32>,
    /// For how many days sums by hour are kept in ClickHouse, 0 forever: at least as long as ended runs.
    #[arg(long, env = "JOBMESH_SUMS_RETENTION_DAYS", value_parser = value_parser!(u32).range(..=DAYS_MAX))]
    pub sums_retention_days: Option<u32>,
    /// For how many days the audit log is kept in ClickHouse, 0 forever.
    #[arg(long, env = "JOBMESH_AUDIT_RETENTION_DAYS", value_parser = value_parser!(u32).range(..=DAYS_MAX))]
    pub audit_retention_days: Option<u32>,
}

impl Retention {
    /// Checks the settings.
    ///
    /// # Errors
    /// If sums would be deleted before the runs that they are made of.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        let forever = |days: Option<u32>| days.map(|days| if days == 0 { u32::MAX } else { days });
        let (runs, sums) = (forever(self.runs_retention_days), forever(self.sums_retention_days));
        // A table of runs whose days are not set can keep them without a limit.
        let runs = runs.unwrap_or(u32::MAX);
        ensure!(
            sums.is_none_or(|sums| sums >= runs),
            "JOBMESH_SUMS_RETENTION_DAYS must be at least JOBMESH_RUNS_RETENTION_DAYS, which must be set, too"
        );
        Ok(())
    }
}

/// The address of ClickHouse, and how to log in.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct ClickHouseAccess {
    /// The URL of ClickHouse's HTTP interface. It may hold a user and a password: then better in the
    /// variable than as an argument.
    #[arg(
        long,
        env = "JOBMESH_CLICKHOUSE_URL",
        default_value = "http://127.0.0.1:8123",
        hide_env_values = true
    )]
    pub clickhouse_url: Secret,
    /// ClickHouse's database, created if it is missing.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_DATABASE", default_value = DATABASE)]
    pub clickhouse_database: String,
    /// ClickHouse's user; its password is in JOBMESH_CLICKHOUSE_PASSWORD or in the next one's file.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_USER")]
    pub clickhouse_user: Option<String>,
    /// A file with ClickHouse's password.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_PASSWORD_FILE")]
    pub clickhouse_password_file: Option<PathBuf>,
    /// The name of a ClickHouse cluster with one shard. Its servers all get the tables, and a row is acknowledged once
    /// most of them have it.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_CLUSTER")]
    pub clickhouse_cluster: Option<ClusterName>,
}

/// ClickHouse, as the settings name it.
#[derive(Clone)]
pub(crate) struct ClickHouse {
    /// A client without a database, to make it.
    pub server: clickhouse::Client,
    /// A client for the tables.
    pub tables: clickhouse::Client,
    /// The name of the database.
    pub database: String,
    /// The cluster that the server is of.
    pub cluster: Option<ClusterName>,
    /// The address, for logs.
    pub shown: String,
}

/// The database, unless another one is set.
pub(crate) const DATABASE: &str = "jobmesh";

impl ClickHouseAccess {
    /// The database `jobmesh` at a URL that holds the login.
    pub fn at(url: Secret) -> Self {
        Self {
            clickhouse_url: url,
            clickhouse_database: DATABASE.to_owned(),
            clickhouse_user: None,
            clickhouse_password_file: None,
            clickhouse_cluster: None,
        }
    }

    /// Clients of ClickHouse.
    ///
    /// # Errors
    /// If the URL is none, or the password cannot be read.
    pub(crate) fn clients(&self) -> anyhow::Result<ClickHouse> {
        // The error must not show the URL, which can hold a password.
        let url = self.clickhouse_url.reveal().parse::<Url>();
        let mut url = url.context("the URL of ClickHouse is not usable")?;
        let of_url = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = match (url.username(), &self.clickhouse_user) {
            ("", user) => user.clone(),
            (user, None) => Some(of_url(user)),
            _ => bail!("ClickHouse's user is in the URL and in a setting: keep one"),
        };
        let set = service::secret::read(PASSWORD, self.clickhouse_password_file.as_deref())?;
        let password = match (url.password().map(of_url), set) {
            (Some(_), Some(_)) => {
                bail!("ClickHouse's password is in the URL and in a setting: keep one")
            }
            (password, set) => password.map(Secret::from).or(set),
        };
        // A URL with a host can be without a user.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        let mut server = clickhouse::Client::default()
            .with_url(url.as_str())
            .with_compression(clickhouse::Compression::None);
        if let Some(user) = user {
            server = server.with_user(user);
        }
        if let Some(password) = password {
            server = server.with_password(password.reveal());
        }
        let cluster = self.clickhouse_cluster.clone();
        if cluster.is_some() {
            // The checkpoint moves on behind a row: one server must not be alone with it.
            server = server.with_setting("insert_quorum", "auto");
        }
        let tables = server.clone().with_database(&self.clickhouse_database);
        let database = self.clickhouse_database.clone();
        Ok(ClickHouse { server, tables, database, cluster, shown: url.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_outlive_their_runs() {
        let check = |runs, sums| {
            let retention = Retention {
                runs_retention_days: runs,
                sums_retention_days: sums,
                audit_retention_days: None,
            };
            retention.check().is_ok()
        };
        assert!(!check(None, Some(1)) && check(Some(30), None) && check(Some(30), Some(0)));
        assert!(check(Some(30), Some(30)));
        assert!(!check(Some(30), Some(29)) && !check(Some(0), Some(400)));
    }
}
