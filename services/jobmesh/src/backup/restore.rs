//! Restores a backup into stores that are empty.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
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
    STREAMS,
    export::SNAPSHOT,
    manifest::{Manifest, Rows},
};

/// Restores the backup in `dir`. No service may run: state makes the streams that are missing.
///
/// # Errors
/// If the backup is not complete, or a store is not empty: then nothing has been changed. Otherwise the stores have to be emptied
/// before the next attempt.
pub(crate) async fn restore(
    broker: &Broker,
    archive: Option<&Archive>,
    dir: &Path,
) -> anyhow::Result<()> {
    let manifest = Manifest::read(dir)?;
    let existing = broker.existing(&STREAMS).await?;
    ensure!(
        existing.is_empty(),
        "NATS has the streams {} already: stop all services, and restore into an account or a store without them",
        existing.join(", ")
    );
    match (archive, &manifest.clickhouse) {
        (Some(archive), Some(rows)) => archive.prepare(rows.schema).await?,
        (None, None) => {}
        (Some(_), None) => anyhow::bail!(
            "the backup has no rows of ClickHouse: --without-clickhouse restores the rest, and sums over time will be missing"
        ),
        (None, Some(_)) => anyhow::bail!(
            "the backup has rows of ClickHouse: name it by --clickhouse-url, or make a backup without them"
        ),
    }
    let restoring = into(broker, archive, dir, &manifest).await;
    restoring
        .context("the restore is incomplete: empty NATS and ClickHouse before you try again")?;
    println!("restored the backup of {}", manifest.made_at);
    Ok(())
}

async fn into(
    broker: &Broker,
    archive: Option<&Archive>,
    dir: &Path,
    manifest: &Manifest,
) -> anyhow::Result<()> {
    for (stream, copied) in &manifest.streams {
        broker.import_stream(stream, copied, &mut open(dir, stream)?).await?;
    }
    topology::ensure(broker, Sizes::default()).await?;
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
    let record = AuditRecord::of_operator("jobmesh restore", None, service::now_ms());
    broker.store_audit_record(&record).await?;
    // Without it no service starts to lead, unless EVENTS is whole.
    if let Some(reach) = manifest.snapshot {
        let mut file = tokio::fs::File::open(dir.join(SNAPSHOT)).await?;
        broker.import_snapshot(reach, &mut file).await?;
    }
    Ok(())
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
