//! Restores a backup into stores that are empty.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use lz4_flex::frame::FrameDecoder;
use metrics::archive::{self, Archive, Table};
use nats::{
    Broker,
    audit::AuditRecord,
    names,
    publish::Writes,
    topology::{self, Sizes},
};

use super::{
    export::SNAPSHOT,
    manifest::{Manifest, Rows},
};

/// A backup that is complete.
pub(crate) struct Restorable {
    dir: PathBuf,
    manifest: Manifest,
}

impl Restorable {
    /// Reads a backup and checks its files.
    ///
    /// # Errors
    /// If files are missing or changed, or do not belong together.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { dir: dir.to_owned(), manifest: Manifest::read(dir)? })
    }

    /// Checks that the stores are empty. No service may run: state makes the streams that are missing.
    ///
    /// # Errors
    /// If one is not, or does not answer. No stream and no row has been written then.
    pub async fn check_stores(
        &self,
        broker: &Broker,
        archive: Option<&Archive>,
    ) -> anyhow::Result<()> {
        // Also those that are not in a backup: a later snapshot, checkpoint or run does not fit it.
        let streams = topology::stream_names();
        let existing = broker.existing(&streams).await?;
        ensure!(
            existing.is_empty(),
            "NATS has the streams {} already: stop all services, and restore into an account or a store without them",
            existing.join(", ")
        );
        match (archive, &self.manifest.clickhouse) {
            (Some(archive), Some(rows)) => archive.prepare(rows.schema).await?,
            (None, None) => {}
            (Some(_), None) => {
                eprintln!("the backup has no rows of ClickHouse: sums over time will be missing");
            }
            (None, Some(_)) => {
                eprintln!("the rows of ClickHouse are left out: sums over time will be missing");
            }
        }
        Ok(())
    }

    /// Restores everything. Until it has succeeded, the account has a mark with which no service starts.
    ///
    /// # Errors
    /// If a store refuses or does not answer: the stores must be emptied before the next attempt.
    pub async fn restore(
        self,
        broker: &Broker,
        archive: Option<&Archive>,
        sizes: Sizes,
    ) -> anyhow::Result<()> {
        broker.mark_restore(sizes.replicas_in(broker.is_in_cluster())).await?;
        let restored = self.restore_marked(broker, archive, sizes).await;
        restored.context(
            "the restore is incomplete, and no service starts with it: empty NATS and ClickHouse before you try again, \
             see \"Backup and restore\" in docs/operations.md",
        )?;
        println!("restored the backup of {}", self.manifest.made_at);
        Ok(())
    }

    async fn restore_marked(
        &self,
        broker: &Broker,
        archive: Option<&Archive>,
        sizes: Sizes,
    ) -> anyhow::Result<()> {
        let Self { dir, manifest } = self;
        let replicas = sizes.replicas_in(broker.is_in_cluster());
        for (stream, copied) in &manifest.streams {
            broker.import_stream(stream, copied, replicas, &mut open(dir, stream)?).await?;
        }
        topology::make_all(broker, sizes).await?;
        // EVENTS can have more commands than the copy of COMMANDS, which is the older one: their sequences are not used again.
        let (_, last) = manifest.bounds(names::COMMANDS)?;
        if last < manifest.through {
            let commands = broker.js.get_stream_no_info(names::COMMANDS).await?;
            commands.purge().sequence(manifest.through + 1).await?;
            let (_, now) = broker.bounds(names::COMMANDS).await?;
            ensure!(now == manifest.through, "COMMANDS ends at {now}, not at {}", manifest.through);
        }
        let fence = broker.read_fence().await?;
        broker.write_bucket(fence, manifest.bucket, Vec::new(), Writes::Atomic).await?;
        if let (Some(archive), Some(rows)) = (archive, &manifest.clickhouse) {
            restore_rows(archive, dir, rows).await?;
            archive::set_checkpoint(broker, rows.checkpoint).await?;
        }
        if let Some(reach) = manifest.snapshot {
            let mut file = tokio::fs::File::open(dir.join(SNAPSHOT)).await?;
            broker.import_snapshot(reach, &mut file).await?;
        }
        let record = AuditRecord::of_operator("jobmesh restore", None, service::now_ms());
        broker.store_audit_record(&record).await?;
        broker.unmark_restore().await?;
        Ok(())
    }
}

async fn restore_rows(archive: &Archive, dir: &Path, rows: &Rows) -> anyhow::Result<()> {
    for file in &rows.files {
        let mut from = FrameDecoder::new(open(dir, &file.name)?);
        let restored = archive.import(file.table, &mut from).await;
        restored.with_context(|| format!("{} could not be restored", file.name))?;
    }
    let of_runs = rows.files.iter().filter(|file| file.table == Table::Runs);
    let expected: u64 = of_runs.map(|file| file.rows).sum();
    let found = archive.rows(Table::Runs).await?;
    ensure!(found == expected, "ClickHouse has {found} rows of ended runs instead of {expected}");
    Ok(())
}

fn open(dir: &Path, name: &str) -> anyhow::Result<impl Read + Send + use<>> {
    let path = dir.join(name);
    let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(BufReader::new(file))
}
