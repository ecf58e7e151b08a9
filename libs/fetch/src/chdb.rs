//! libchdb: the ClickHouse engine as a library, from its npm package.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use sha2::{Digest as _, Sha512};

use crate::{cache, command::run, progress::Progress};

/// The version that is fetched.
pub const CHDB_VERSION: &str = "26.7.3-stable.1";
/// The packages that are known, by platform, each with the SHA-512 of its archive.
const PACKAGES: [(&str, &str, &str); 1] = [(
    "linux-x86_64",
    "@chdb/lib-linux-x64-gnu",
    "5cff7b98caa7739b59a4a432c11f0dedc2d3b073624e61ebdf4a42e66ce8de35\
     a6ba48ca9f62016bad1cd81fe059435cb858ce3235a8a2b408082a81563e70a7",
)];

/// The path of libchdb.so: `JOBMESH_LIBCHDB`, else in the cache, to which it is fetched.
///
/// # Errors
/// If it can neither be found nor fetched; the error says what to do.
pub fn libchdb() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("JOBMESH_LIBCHDB") {
        return Ok(named.into());
    }
    let platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    let known = PACKAGES.iter().find(|(name, ..)| *name == platform);
    let Some((_, package, checksum)) = known else {
        bail!(
            "no libchdb is known for {platform}: name one in JOBMESH_LIBCHDB, \
             or use a ClickHouse server with --clickhouse-url"
        );
    };
    let name = format!("libchdb-{CHDB_VERSION}");
    let filled = cache::entry(&name, "libchdb.so", |dir| fetch(dir, package, checksum));
    filled.context(
        "libchdb is needed; it comes with npm (Debian: apt-get install npm), \
         or name a libchdb.so in JOBMESH_LIBCHDB",
    )
}

/// Downloads, verifies and unpacks the package.
fn fetch(dir: &Path, package: &str, checksum: &str) -> anyhow::Result<()> {
    let _progress = Progress::begin("libchdb, the ClickHouse engine, from npm (178 MB)");
    let work = tempfile::tempdir_in(dir)?;
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent", &format!("{package}@{CHDB_VERSION}")]).current_dir(work.path());
    // The archive is kept once, unpacked; npm's own cache need not have it too.
    npm.env("npm_config_cache", work.path().join("npm"));
    let printed = run(&mut npm).context("the package could not be fetched")?;
    let archive = printed.lines().last().context("npm named no archive")?.trim();
    let archive = work.path().join(archive);
    verify(&archive, checksum)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(work.path()).arg("package/libchdb.so");
    run(&mut tar).context("the archive could not be unpacked")?;
    fs::rename(work.path().join("package/libchdb.so"), dir.join("libchdb.so"))?;
    Ok(())
}

fn verify(archive: &Path, checksum: &str) -> anyhow::Result<()> {
    let mut hash = Sha512::new();
    let mut file = File::open(archive)
        .with_context(|| format!("npm left no archive {}", archive.display()))?;
    io::copy(&mut file, &mut hash)?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(found == checksum, "the archive's SHA-512 is {found}, not {checksum}");
    Ok(())
}
