//! Copies the parts of a mesh that works.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use anyhow::{Context, ensure};
use lz4_flex::frame::FrameEncoder;
use metrics::archive::{self, Archive, Cut, Table};
use nats::{Broker, audit::AuditRecord, checkpoint::Checkpoint, names};

use super::{
    STREAMS,
    manifest::{Manifest, Part, RowFile, Rows},
};

/// How often the copies are made again if the mesh deleted meanwhile what they need.
const ATTEMPTS: u32 = 3;
/// How often a bucket of keys is copied again because a key was written meanwhile.
const KEY_ATTEMPTS: u32 = 20;
/// The file of the snapshot.
pub(super) const SNAPSHOT: &str = "snapshot";

/// Copies everything into `dir`.
pub(super) async fn export(
    broker: &Broker,
    archive: Option<&Archive>,
    dir: &Path,
) -> anyhow::Result<()> {
    // Before anything is copied: ClickHouse comes last.
    if let Some(archive) = archive {
        archive.version().await.context(
            "ended runs and the audit log cannot be copied: name ClickHouse by --clickhouse-url, or leave them out by \
             --without-clickhouse",
        )?;
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    ensure!(
        fs::read_dir(dir)?.next().is_none(),
        "{} is not empty: name a directory that does not exist",
        dir.display()
    );
    let exported = export_into_empty(broker, archive, dir).await;
    if exported.is_err() {
        clear(dir)?;
    }
    exported
}

async fn export_into_empty(
    broker: &Broker,
    archive: Option<&Archive>,
    dir: &Path,
) -> anyhow::Result<()> {
    let mut attempt = 1;
    loop {
        clear(dir)?;
        let mut manifest = Manifest::new(jiff::Timestamp::now().to_string());
        let fits = copy(broker, archive, dir, &mut manifest).await?;
        match fits {
            Ok(()) => {
                manifest.write(dir)?;
                let record = AuditRecord::of_operator("jobmesh backup", None, service::now_ms());
                if let Err(error) = broker.store_audit_record(&record).await {
                    eprintln!("jobmesh: the audit log does not have this: {error}");
                }
                let without = if archive.is_some() { "" } else { ", without ClickHouse" };
                let made_at = &manifest.made_at;
                println!("{} is a complete backup of {made_at}{without}", dir.display());
                return Ok(());
            }
            Err(error) if attempt < ATTEMPTS => {
                eprintln!("copying again: {error:#}");
                attempt += 1;
            }
            Err(error) => return Err(error.context("the backup is not complete")),
        }
    }
}

/// Removes what a failed attempt has left.
fn clear(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Copies the parts in the order that makes them fit together; returns whether they do.
async fn copy(
    broker: &Broker,
    archive: Option<&Archive>,
    dir: &Path,
    manifest: &mut Manifest,
) -> anyhow::Result<anyhow::Result<()>> {
    let listed = broker.snapshot_reaches().await;
    listed.context("is the login of NATS that of an operator, who may do everything?")?;
    let mut part = Part::create(dir, SNAPSHOT)?;
    match broker.export_snapshot(&mut part).await {
        Ok(snapshot) => manifest.snapshot = snapshot,
        Err(error) => return Ok(Err(error.into())),
    }
    match manifest.snapshot {
        Some(_) => drop(manifest.files.insert(SNAPSHOT.to_owned(), part.finish()?)),
        None => fs::remove_file(dir.join(SNAPSHOT))?,
    }
    // The bucket has all that this says, and maybe more.
    manifest.bucket = broker.read_fence().await?.through;
    // Commands before events: those that were accepted before are in one of them.
    // State of an earlier version makes no bucket of marks.
    let marks = [names::FAILURES_STREAM.to_owned()];
    let has_marks = !broker.existing(&marks).await?.is_empty();
    for stream in STREAMS.into_iter().filter(|it| has_marks || *it != names::FAILURES_STREAM) {
        copy_stream(broker, dir, stream, manifest).await?;
    }
    let (_, last) = manifest.bounds(names::EVENTS)?;
    manifest.through = through(broker, last).await?.max(snapshot_commands(manifest));
    if let Some(archive) = archive {
        manifest.clickhouse = Some(copy_rows(broker, archive, dir, manifest).await?);
    }
    let (first_event, _) = broker.bounds(names::EVENTS).await?;
    Ok(manifest.check(first_event))
}

async fn copy_stream(
    broker: &Broker,
    dir: &Path,
    stream: &'static str,
    manifest: &mut Manifest,
) -> anyhow::Result<()> {
    for attempt in 1.. {
        let mut part = Part::create(dir, stream)?;
        let copied = broker.export_stream(stream, &mut part).await?;
        let (_, last) = copied.bounds();
        // A key that was written meanwhile is missing, and nothing brings it back.
        let is_of_keys = [names::KEYS_STREAM, names::FAILURES_STREAM].contains(&stream);
        let is_whole = !is_of_keys || broker.last_sequence(stream).await? == last;
        if is_whole {
            manifest.files.insert(stream.to_owned(), part.finish()?);
            manifest.streams.insert(stream.to_owned(), copied);
            break;
        }
        ensure!(attempt < KEY_ATTEMPTS, "{stream} changes too often to be copied: try again");
    }
    Ok(())
}

/// The last command in the snapshot.
fn snapshot_commands(manifest: &Manifest) -> u64 {
    manifest.snapshot.map_or(0, |snapshot| snapshot.commands)
}

/// The last command whose events are in EVENTS up to a message; 0 if EVENTS does not tell.
async fn through(broker: &Broker, last: u64) -> anyhow::Result<u64> {
    let events = broker.js.get_stream_no_info(names::EVENTS).await?;
    let (first, _) = broker.bounds(names::EVENTS).await?;
    // A message that no service can read has none.
    for event in (first..=last).rev() {
        let message = broker.reread(|| events.get_raw_message(event)).await;
        let message = message.with_context(|| format!("EVENTS {event} could not be read"))?;
        let through = message.headers.get(names::THROUGH).map(|value| value.as_str().parse());
        if let Some(Ok(through)) = through {
            return Ok(through);
        }
    }
    Ok(0)
}

/// Copies the rows whose events metrics need not read again.
async fn copy_rows(
    broker: &Broker,
    archive: &Archive,
    dir: &Path,
    manifest: &mut Manifest,
) -> anyhow::Result<Rows> {
    let checkpoint = archive::checkpoint(broker).await?;
    let checkpoint = checkpoint.context(
        "how far metrics has read EVENTS is not known: start it, or use --without-clickhouse",
    )?;
    let (_, last) = manifest.bounds(names::EVENTS)?;
    // Rows never change, and all before the checkpoint are there.
    let checkpoint =
        Checkpoint { next: checkpoint.next.min(last + 1), pending: None, at: checkpoint.at };
    let events = broker.js.get_stream(names::EVENTS).await?;
    let created = events.cached_info().created.unix_timestamp_nanos() / 1_000_000;
    let first_hour = archive.first_hour().await?;
    let cut = Cut { next: checkpoint.next, created: i64::try_from(created)?, first_hour };
    let mut files = Vec::new();
    let schema = archive.version().await?;
    // A backup is made before services are replaced: the tables can be of an earlier version than this program.
    for table in Table::ALL.into_iter().filter(|table| table.since_version() <= schema) {
        for (number, part) in (1..).zip(archive.parts(table, cut).await?) {
            let name = format!("{}-{number:06}.native.lz4", table.name());
            let mut frame = FrameEncoder::new(Part::create(dir, &name)?);
            archive.export(table, part, cut, &mut frame).await?;
            manifest.files.insert(name.clone(), frame.finish()?.finish()?);
            files.push(RowFile { name, table, rows: part.rows });
        }
    }
    Ok(Rows { schema, checkpoint, files })
}
