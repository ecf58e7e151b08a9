//! nats-server: the one on PATH if it is new enough, else Debian's package from the testing suite.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{
    cache,
    command::{on_path, run},
    progress::Progress,
};

/// The oldest server that Jobmesh runs on: it needs atomic batches.
const OLDEST: (u32, u32) = (2, 12);
/// The suite whose package is fetched; stable's is too old.
const SUITE: &str = "forky";
/// The folder of Debian's keys.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// The path of a usable nats-server: `JOBMESH_NATS_SERVER`, else on PATH, else in the cache, to
/// which it is fetched.
///
/// # Errors
/// If there is none and none can be fetched; the error names the command that installs it.
pub fn nats_server() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("JOBMESH_NATS_SERVER") {
        return Ok(named.into());
    }
    if let Some(found) = on_path("nats-server")
        && is_new_enough(&found)
    {
        return Ok(found);
    }
    cache::entry("nats-server", "usr/sbin/nats-server", fetch).with_context(|| {
        format!(
            "nats-server {}.{} or newer is needed; install it (macOS: brew install nats-server, \
             elsewhere: nats-io/nats-server's releases) and put it on PATH",
            OLDEST.0, OLDEST.1
        )
    })
}

fn is_new_enough(server: &Path) -> bool {
    let Ok(said) = run(Command::new(server).arg("--version")) else { return false };
    let version = said.trim().rsplit('v').next().unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version >= OLDEST
}

/// Downloads and unpacks the package into `dir`, with apt's own client, keys and mirror.
fn fetch(dir: &Path) -> anyhow::Result<()> {
    let _progress =
        Progress::begin("nats-server from Debian's package archive (6 MB and its index)");
    let keyring = KEYRINGS.iter().find(|file| Path::new(file).is_file());
    let keyring = keyring.context("Debian's archive keys are not here")?;
    let mirror = mirror()?;
    let work = tempfile::tempdir_in(dir)?;
    let folder = |name: &str| -> anyhow::Result<PathBuf> {
        let folder = work.path().join(name);
        fs::create_dir_all(folder.join("partial"))?;
        Ok(folder)
    };
    folder("state/lists")?;
    folder("cache/archives")?;
    let sources = work.path().join("sources.list");
    fs::write(&sources, format!("deb [signed-by={keyring}] {mirror} {SUITE} main\n"))?;
    let apt = |command: &str| {
        let mut apt = Command::new("apt-get");
        let root = work.path().display();
        apt.arg("-q").arg("-o").arg(format!("Dir::State={root}/state"));
        apt.arg("-o").arg(format!("Dir::Cache={root}/cache"));
        apt.arg("-o").arg(format!("Dir::Etc::sourcelist={}", sources.display()));
        apt.arg("-o").arg("Dir::Etc::sourceparts=-");
        apt.arg("-o").arg("APT::Sandbox::User=root");
        apt.arg("-o").arg("Acquire::Languages=none");
        apt.arg("-o").arg("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false");
        apt.arg("-o").arg("Acquire::Retries=3");
        apt.arg(command).current_dir(work.path());
        apt
    };
    run(&mut apt("update")).context("the package index could not be fetched")?;
    run(apt("download").arg("nats-server")).context("the package could not be fetched")?;
    let package = fs::read_dir(work.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.context("apt-get fetched no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(dir))?;
    anyhow::ensure!(is_new_enough(&dir.join("usr/sbin/nats-server")), "the package is too old");
    Ok(())
}

/// The mirror that this machine's apt uses for Debian.
fn mirror() -> anyhow::Result<String> {
    if let Ok(mirror) = std::env::var("JOBMESH_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let mut list = Command::new("apt-get");
    let listed = run(list.args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let debian = listed.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    match debian {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("apt has no Debian mirror; name one in JOBMESH_DEBIAN_MIRROR"),
    }
}
