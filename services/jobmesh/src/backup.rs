//! `jobmesh backup` and `jobmesh restore`: everything that a mesh has stored, as a directory of files.
//!
//! The parts are copied one after the other while the mesh works, in an order that makes them fit together: what follows from
//! EVENTS before EVENTS, so that a replay brings it up to date, as after a crash. docs/decisions/0034 has the reasons.

mod export;
mod manifest;
mod restore;

use std::path::PathBuf;

use clap::Args;
use metrics::{ClickHouseAccess, archive::Archive};
use nats::{Broker, names, topology::Sizes};
use service::{NatsLogin, NatsUrl};

pub(crate) use restore::Restorable;

/// The streams that are copied. Work streams follow from EVENTS, leases expire, and snapshots are copied as objects.
const STREAMS: [&str; 8] = [
    names::JOBS_STREAM,
    names::COMMANDS,
    names::EVENTS,
    names::RESULTS_STREAM,
    names::KEYS_STREAM,
    names::FAILURES_STREAM,
    names::AUDIT,
    names::REJECTED,
];

/// The stores of a mesh.
#[derive(Debug, Args)]
pub(crate) struct Stores {
    /// The URL of NATS; the login is that of an operator, who may do everything.
    #[arg(long, env = "JOBMESH_NATS_URL", hide_env_values = true)]
    nats_url: NatsUrl,
    #[command(flatten)]
    login: NatsLogin,
    #[command(flatten)]
    clickhouse: ClickHouseAccess,
    /// Leave out ClickHouse: ended runs and the audit log.
    #[arg(long)]
    without_clickhouse: bool,
}

impl Stores {
    async fn open(&self) -> anyhow::Result<(Broker, Option<Archive>)> {
        let access = self.login.access(self.nats_url.reveal())?;
        let broker = Broker::connect_with(&access, "jobmesh-backup").await?;
        let archive = match self.without_clickhouse {
            true => None,
            false => Some(Archive::open(&self.clickhouse)?),
        };
        Ok((broker, archive))
    }
}

/// `jobmesh backup`.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// A directory that is empty or does not exist.
    dir: PathBuf,
    #[command(flatten)]
    stores: Stores,
}

/// `jobmesh restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The directory of a backup.
    dir: PathBuf,
    /// On how many servers of a cluster each stream is kept: 3 in a cluster and 1 otherwise, if not set.
    #[arg(long, env = "JOBMESH_REPLICAS")]
    replicas: Option<usize>,
    #[command(flatten)]
    stores: Stores,
}

impl Backup {
    /// Copies everything.
    pub async fn run(self) -> anyhow::Result<()> {
        let (broker, archive) = self.stores.open().await?;
        export::export(&broker, archive.as_ref(), &self.dir).await
    }
}

impl Restore {
    /// Restores everything.
    pub async fn run(self) -> anyhow::Result<()> {
        let backup = Restorable::read(&self.dir)?;
        let (broker, archive) = self.stores.open().await?;
        backup.check_stores(&broker, archive.as_ref()).await?;
        let sizes = Sizes { replicas: self.replicas, ..Sizes::default() };
        backup.restore(&broker, archive.as_ref(), sizes).await
    }
}
