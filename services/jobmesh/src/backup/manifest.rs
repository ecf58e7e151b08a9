//! What a backup consists of, and whether its parts are there and fit together.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, bail, ensure};
use metrics::archive::Table;
use nats::{
    archive::StreamArchive, checkpoint::Checkpoint, names, snapshot::SnapshotWatermark, topology,
    wire::ProjectionWatermark,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of its file, which is written last.
pub(super) const MANIFEST: &str = "manifest.json";
/// The version of this format.
const FORMAT: u32 = 1;
/// The permissions of files: they hold the data of all projects.
const MODE: u32 = 0o600;

/// A backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    format: u32,
    /// The version of the program that made it.
    made_by: String,
    /// The time of its start, as RFC 3339.
    pub made_at: String,
    wire_version: String,
    /// The streams, by name; the file of each has the same name.
    pub streams: BTreeMap<String, StreamArchive>,
    /// How far the snapshot reaches, if there was one.
    pub snapshot: Option<SnapshotWatermark>,
    /// How far the bucket of jobs is.
    pub bucket: ProjectionWatermark,
    /// The last command whose events are in EVENTS.
    pub through: u64,
    /// The rows, unless they were left out.
    pub clickhouse: Option<Rows>,
    /// Every file.
    pub files: BTreeMap<String, Digested>,
}

/// The rows of a backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rows {
    /// The version of the tables.
    pub schema: u32,
    /// From where on metrics reads EVENTS.
    pub checkpoint: Checkpoint,
    /// The files, in order.
    pub files: Vec<RowFile>,
}

/// A file of rows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RowFile {
    pub name: String,
    pub table: Table,
    pub rows: u64,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digested {
    bytes: u64,
    sha256: String,
}

impl Manifest {
    pub fn new(made_at: String) -> Self {
        Self {
            format: FORMAT,
            made_by: service::VERSION.clone(),
            made_at,
            wire_version: topology::WIRE_VERSION.to_owned(),
            streams: BTreeMap::new(),
            snapshot: None,
            bucket: ProjectionWatermark::default(),
            through: 0,
            clickhouse: None,
            files: BTreeMap::new(),
        }
    }

    /// Reads the manifest of a directory, and checks that all of its files are there and unchanged.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST);
        let text = fs::read(&path).with_context(|| {
            format!("{} is no complete backup: cannot read {MANIFEST}", dir.display())
        })?;
        let manifest: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} cannot be understood", path.display()))?;
        ensure!(
            manifest.format == FORMAT,
            "the backup has format {}, and this program reads {FORMAT}",
            manifest.format
        );
        ensure!(
            manifest.wire_version == topology::WIRE_VERSION,
            "the backup has wire version {}, and this program uses {}: restore it with jobmesh {}",
            manifest.wire_version,
            topology::WIRE_VERSION,
            manifest.made_by
        );
        let mut wrong = Vec::new();
        for (name, expected) in &manifest.files {
            match digest(&dir.join(name)) {
                Ok(found) if found == *expected => {}
                Ok(found) if found.bytes == expected.bytes => {
                    wrong.push(format!("{name} is another file: its checksum differs"));
                }
                Ok(found) => wrong.push(format!(
                    "{name} is another file ({} bytes instead of {})",
                    found.bytes, expected.bytes
                )),
                Err(error) => wrong.push(format!("{name}: {error}")),
            }
        }
        ensure!(wrong.is_empty(), "the backup is not complete: {}", wrong.join("; "));
        manifest.check(manifest.bounds(names::EVENTS)?.0)?;
        Ok(manifest)
    }

    /// Checks that the parts fit together. `first_event` is the first message of EVENTS that was not deleted meanwhile.
    pub fn check(&self, first_event: u64) -> anyhow::Result<()> {
        let (first_command, _) = self.bounds(names::COMMANDS)?;
        let (_, last_event) = self.bounds(names::EVENTS)?;
        let known = self.snapshot.map_or(0, |snapshot| snapshot.events);
        ensure!(
            first_event <= known + 1,
            "the snapshot has events up to {known}, and EVENTS begins at {first_event}"
        );
        ensure!(known <= last_event, "the snapshot has event {known}, EVENTS ends at {last_event}");
        ensure!(
            first_command <= self.through + 1,
            "EVENTS has the commands up to {}, and COMMANDS begins at {first_command}",
            self.through
        );
        let shown = self.bucket.position.sequence;
        ensure!(shown <= last_event, "the bucket has event {shown}, EVENTS ends at {last_event}");
        if let Some(rows) = &self.clickhouse {
            let next = rows.checkpoint.next;
            ensure!(
                first_event <= next && next <= last_event + 1,
                "ClickHouse has rows up to event {}, and EVENTS has {first_event} to {last_event}",
                next.saturating_sub(1)
            );
        }
        Ok(())
    }

    /// The first and the last sequence of a stream.
    pub fn bounds(&self, stream: &str) -> anyhow::Result<(u64, u64)> {
        match self.streams.get(stream) {
            Some(archive) => Ok(archive.bounds()),
            None => bail!("the backup has no stream {stream}"),
        }
    }

    /// Writes it, which completes the backup.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let mut file = create(dir, MANIFEST)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(())
    }
}

/// Makes a file that only this user can read.
fn create(dir: &Path, name: &str) -> anyhow::Result<File> {
    let path = dir.join(name);
    let mut options = OpenOptions::new();
    let made = options.write(true).create(true).truncate(true).mode(MODE).open(&path);
    made.with_context(|| format!("cannot write {}", path.display()))
}

/// A file of a backup that is written.
pub(super) struct Part {
    file: BufWriter<File>,
    sum: Sha256,
    bytes: u64,
}

impl Part {
    pub fn create(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let file = BufWriter::new(create(dir, name)?);
        Ok(Self { file, sum: Sha256::new(), bytes: 0 })
    }

    /// Completes it on the disk.
    pub fn finish(self) -> anyhow::Result<Digested> {
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(Digested { bytes: self.bytes, sha256: format!("{:x}", self.sum.finalize()) })
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sum.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn digest(path: &Path) -> io::Result<Digested> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut sum, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Digested { bytes, sha256: format!("{:x}", sum.finalize()) });
        }
        sum.update(&buffer[..read]);
        bytes += read as u64;
    }
}
