//! Other queues, measured beside Jobmesh in the same run, where their servers are installed.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde::Deserialize;
use tempfile::TempDir;

/// Where the programs are.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
/// How long a server may take to listen.
const START_WITHIN: Duration = Duration::from_secs(20);

/// Rates of a peer, in jobs a second.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// Enqueued 1,000 at a time, four at once.
    pub add_bulk: f64,
    /// Run at concurrency 256.
    pub drain: f64,
    /// Enqueued one by one from 64 callers in the queue's own process.
    pub add: f64,
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

/// Measures BullMQ on a Redis of its own, which writes its log to disk each second. `None` where
/// `redis-server`, `npm` or `node` is missing.
pub fn bullmq(jobs: usize, singles: usize) -> anyhow::Result<Option<Rates>> {
    let there = |program: &str| {
        let version = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    if !["redis-server", "npm", "node"].into_iter().all(there) {
        return Ok(None);
    }
    let dir = TempDir::new()?;
    for file in ["package.json", "package-lock.json", ".npmrc", "bullmq.mjs"] {
        fs::copy(Path::new(PEERS).join(file), dir.path().join(file))?;
    }
    let mut npm = Command::new("npm");
    let installed = npm.args(["ci", "--silent", "--no-audit"]).current_dir(&dir).status()?;
    ensure!(installed.success(), "BullMQ cannot be installed: {installed}");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut redis = Command::new("redis-server");
    redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    redis.args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"]).arg(dir.path());
    let _redis = Server(redis.stdout(Stdio::null()).spawn()?);
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(begun.elapsed() < START_WITHIN, "redis-server does not listen");
    }
    let mut node = Command::new("node");
    node.arg("bullmq.mjs").args([port.to_string(), jobs.to_string(), singles.to_string()]);
    let output = node.current_dir(&dir).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "bullmq.mjs: {}", output.status);
    let rates: Rates = serde_json::from_slice(&output.stdout).context("bullmq.mjs says rates")?;
    ensure!((rates.ran, rates.runs) == (jobs, jobs), "{rates:?}: not each job once");
    Ok(Some(rates))
}
