//! The cache folder. Its entries are complete: each is moved there when it is finished.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The cache folder: `JOBMESH_CACHE`, else `jobmesh` where the machine keeps its caches.
pub(crate) fn dir() -> anyhow::Result<PathBuf> {
    let named = env::var_os("JOBMESH_CACHE").map(PathBuf::from);
    let xdg = || env::var_os("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("jobmesh"));
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/jobmesh"));
    let dir = named.or_else(xdg).or_else(home);
    let dir = dir.context("no folder for the cache: set JOBMESH_CACHE or HOME")?;
    let dir = std::path::absolute(dir)?;
    fs::create_dir_all(&dir).with_context(|| format!("no cache folder {}", dir.display()))?;
    Ok(dir)
}

/// Returns `file` of the cache entry `name`. If the entry is missing, `fill` gets an empty folder,
/// which becomes the entry when `fill` succeeds. Only one process fills at a time.
pub(crate) fn entry(
    name: &str,
    file: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let cache = dir()?;
    let entry = cache.join(name);
    let found = entry.join(file);
    if found.is_file() {
        return Ok(found);
    }
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock().context("the cache could not be locked")?;
    // Another process may have filled the entry while this one waited for the lock.
    if found.is_file() {
        return Ok(found);
    }
    let making = tempfile::Builder::new().prefix("making-").tempdir_in(&cache)?;
    fill(making.path())?;
    anyhow::ensure!(making.path().join(file).is_file(), "{file} was fetched, but is not there");
    fs::rename(making.path(), &entry)
        .with_context(|| format!("{} could not be put in place", entry.display()))?;
    // The folder has a new name: there is nothing left to be removed.
    let _ = making.keep();
    Ok(found)
}
