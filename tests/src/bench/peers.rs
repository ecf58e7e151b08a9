//! Other queues, measured beside Jobmesh in the same run, where their servers are installed.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use super::{PICKUP_EVERY, PICKUP_JOBS, ROUNDS, load::Latencies, median_by, mesh::Durability};

/// The folder of the programs.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
const FILES: [&str; 6] =
    ["package.json", "package-lock.json", ".npmrc", "common.mjs", "bullmq.mjs", "graphile.mjs"];
/// How long a server may take to listen.
const START_WITHIN: Duration = Duration::from_secs(20);
/// Whom PostgreSQL runs as, which refuses to run as root.
const POSTGRES_USER: &str = "postgres";

/// A peer, as it was measured.
pub struct Peer {
    /// Jobs a second, enqueued 1,000 at a time, four at once.
    pub add_bulk: f64,
    /// Jobs a second, run at concurrency 256.
    pub drain: f64,
    /// The same with few slots, where that is measured.
    pub slots: Vec<f64>,
    /// Jobs a second, enqueued one by one from 64 callers in the queue's own process.
    pub add: f64,
    /// From the end of an add to the start of its handler.
    pub pickup: Latencies,
}

impl Peer {
    /// Jobs per second, enqueued in bulk and then drained.
    pub fn life(&self) -> f64 {
        1.0 / (1.0 / self.add_bulk + 1.0 / self.drain)
    }
}

/// What a peer's program says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    add_bulk: f64,
    drain: f64,
    add: f64,
    #[serde(default)]
    slots: Vec<f64>,
    pickup_ms: Vec<f64>,
    ran: usize,
    runs: usize,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The peers' programs, with what they need.
pub struct Peers {
    dir: TempDir,
}

impl Peers {
    /// Installs them; `None` where `npm` or `node` is missing.
    pub fn install() -> anyhow::Result<Option<Self>> {
        if version("npm").is_none() || version("node").is_none() {
            return Ok(None);
        }
        let dir = TempDir::new()?;
        for file in FILES {
            fs::copy(Path::new(PEERS).join(file), dir.path().join(file))?;
        }
        let mut npm = Command::new("npm");
        let installed = npm.args(["ci", "--silent", "--no-audit"]).current_dir(&dir).status()?;
        ensure!(installed.success(), "the peers cannot be installed: {installed}");
        Ok(Some(Self { dir }))
    }

    /// BullMQ on its own Redis, the medians of several runs; `None` if there is no `redis-server`.
    pub fn bullmq(&self, how: Durability, jobs: usize) -> anyhow::Result<Option<Peer>> {
        if version("redis-server").is_none() {
            return Ok(None);
        }
        let runs = (0..ROUNDS).map(|_| self.bullmq_once(how, jobs));
        let runs: Vec<Peer> = runs.collect::<anyhow::Result<_>>()?;
        let median =
            |value: fn(&Peer) -> f64| median_by(runs.iter().map(value).collect(), |it| *it);
        let peer = Peer {
            add_bulk: median(|run| run.add_bulk),
            drain: median(|run| run.drain),
            add: median(|run| run.add),
            // Each a median already.
            slots: runs[0].slots.clone(),
            pickup: median_by(runs, |run| run.pickup.quantile(0.99)).pickup,
        };
        Ok(Some(peer))
    }

    fn bullmq_once(&self, how: Durability, jobs: usize) -> anyhow::Result<Peer> {
        let (port, data) = (fetch::free_port()?, TempDir::new()?);
        let fsync = match how {
            Durability::Fast => "everysec",
            Durability::Always => "always",
        };
        let mut redis = Command::new("redis-server");
        redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        redis.args(["--appendonly", "yes", "--appendfsync", fsync, "--dir"]).arg(data.path());
        let _redis = Server(redis.stdout(Stdio::null()).spawn()?);
        until_open(port)?;
        self.measure("bullmq.mjs", port, jobs)
    }

    /// graphile-worker on its own PostgreSQL; `None` if there is none.
    pub fn graphile(&self, how: Durability, jobs: usize) -> anyhow::Result<Option<Peer>> {
        let Some(programs) = postgres() else { return Ok(None) };
        let (port, data) = (fetch::free_port()?, TempDir::new()?);
        let cluster = data.path().join("data");
        // SAFETY: geteuid takes nothing and touches no memory.
        let as_root = unsafe { libc::geteuid() } == 0;
        let run = |program: &str| {
            let program = programs.join(program);
            if !as_root {
                return Command::new(program);
            }
            let mut command = Command::new("runuser");
            command.args(["-u", POSTGRES_USER, "--"]).arg(program).current_dir("/");
            command
        };
        if as_root {
            let (user, group) = ids(POSTGRES_USER)?;
            chown(data.path(), Some(user), Some(group))?;
        }
        let mut initdb = run("initdb");
        initdb.args(["--username", "jobmesh", "--auth", "trust", "--pgdata"]).arg(&cluster);
        let made = initdb.stdout(Stdio::null()).status()?;
        ensure!(made.success(), "initdb: {made}");
        let commit = match how {
            Durability::Fast => "synchronous_commit=off",
            Durability::Always => "synchronous_commit=on",
        };
        let start = run("pg_ctl")
            .args(["start", "--wait", "--silent", "--pgdata"])
            .arg(&cluster)
            .arg("--log")
            .arg(data.path().join("log"))
            .args(["--options", &format!("-p {port} -h 127.0.0.1 -k '' -c {commit}")])
            .stdout(Stdio::null())
            .status()?;
        ensure!(start.success(), "pg_ctl start: {start}");
        let peer = self.measure("graphile.mjs", port, jobs);
        let mut stop = run("pg_ctl");
        stop.args(["stop", "--wait", "--silent", "--mode", "immediate", "--pgdata"]).arg(&cluster);
        let stopped = stop.stdout(Stdio::null()).status()?;
        ensure!(stopped.success(), "pg_ctl stop: {stopped}");
        peer.map(Some)
    }

    /// Which versions are measured.
    pub fn versions(&self) -> anyhow::Result<String> {
        let package = fs::read_to_string(self.dir.path().join("package.json"))?;
        let package: serde_json::Value = serde_json::from_str(&package)?;
        let of = |name: &str| package["dependencies"][name].as_str().unwrap_or("?").to_owned();
        let redis = version("redis-server").unwrap_or_else(|| "no redis-server".into());
        let postgres = postgres().and_then(|programs| version(programs.join("postgres")));
        let postgres = postgres.unwrap_or_else(|| "no PostgreSQL".into());
        let node = version("node").unwrap_or_default();
        let (bullmq, graphile) = (of("bullmq"), of("graphile-worker"));
        Ok(format!(
            "BullMQ {bullmq} ({redis}), graphile-worker {graphile} ({postgres}), Node {node}"
        ))
    }

    fn measure(&self, program: &str, port: u16, jobs: usize) -> anyhow::Result<Peer> {
        let numbers = [u128::from(port), jobs as u128, super::PEER_SINGLES as u128];
        let numbers = numbers.into_iter().chain([PICKUP_JOBS as u128, PICKUP_EVERY.as_millis()]);
        let mut node = Command::new("node");
        node.arg(program).args(numbers.map(|number| number.to_string()));
        let output = node.current_dir(&self.dir).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{program}: {}", output.status);
        let measured: Measured = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{program} says what it measured"))?;
        let counts = (measured.ran, measured.runs);
        ensure!(counts == (jobs, jobs), "{program}: {counts:?} jobs and runs, not {jobs} each");
        let Measured { add_bulk, drain, slots, add, pickup_ms, .. } = measured;
        Ok(Peer { add_bulk, drain, slots, add, pickup: Latencies::new(pickup_ms) })
    }
}

/// The first line of a program's version output; `None` if the program is missing.
fn version(program: impl AsRef<std::ffi::OsStr>) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = version.lines().next()?.replace("(PostgreSQL) ", "");
    let short = version.split(" (").next()?.split(" sha=").next()?;
    Some(short.to_owned())
}

/// The folder of PostgreSQL's programs: on the path, or Debian's.
fn postgres() -> Option<PathBuf> {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = debian.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = debian.chain(std::env::split_paths(&path)).collect();
    folders.into_iter().find(|folder| folder.join("initdb").exists())
}

/// The ids of a user and its group.
fn ids(user: &str) -> anyhow::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(user));
    let mut words = line.with_context(|| format!("there is no user {user}"))?.split(':').skip(2);
    let mut id = || words.next().and_then(|id| id.parse().ok()).context("a user has ids");
    Ok((id()?, id()?))
}

fn until_open(port: u16) -> anyhow::Result<()> {
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(begun.elapsed() < START_WITHIN, "nothing listens on port {port}");
    }
    Ok(())
}
