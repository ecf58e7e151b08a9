//! What an operator may set of olap.

use std::{net::SocketAddr, path::PathBuf};

/// Settings of olap.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The address of ClickHouse's HTTP interface: keep it local.
    #[arg(long, env = "JOBMESH_OLAP_LISTEN", default_value = "127.0.0.1:8123")]
    pub listen: SocketAddr,
    /// The folder of the tables.
    #[arg(long, env = "JOBMESH_OLAP_DIR", default_value = "jobmesh-data/olap")]
    pub dir: PathBuf,
    /// The file with the password of the reader, for people: it can only read.
    #[arg(long, env = "JOBMESH_OLAP_PASSWORD_FILE", default_value = "jobmesh-data/olap.password")]
    pub password_file: PathBuf,
    /// The file with the password of the writer, for metrics: it can do everything.
    #[arg(
        long,
        env = "JOBMESH_OLAP_WRITER_PASSWORD_FILE",
        default_value = "jobmesh-data/olap.writer.password"
    )]
    pub writer_password_file: PathBuf,
    /// The path of libchdb.so.
    #[arg(long, env = "JOBMESH_LIBCHDB")]
    pub libchdb: PathBuf,
}
