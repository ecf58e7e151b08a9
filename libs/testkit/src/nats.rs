//! A NATS server of one test's own.

use std::{
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::bail;
use tempfile::TempDir;

/// How long the server may take to answer.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// The server's log.
const LOG: &str = "nats-server.log";

/// The configuration that operators use.
pub(crate) const CONF: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats/jobmesh.conf");

/// A server, killed when it is dropped.
pub struct Nats {
    dir: TempDir,
    port: u16,
    server: Child,
}

impl Nats {
    /// Starts a server with the configuration that operators use.
    ///
    /// # Errors
    /// If there is no nats-server, or it does not come up.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with("")
    }

    /// Starts a server with the configuration that operators use, and with `more` behind it.
    ///
    /// # Errors
    /// If there is no nats-server, or it does not come up.
    pub fn start_with(more: &str) -> anyhow::Result<Self> {
        Self::start_from(&format!("{}\n{more}\n", std::fs::read_to_string(CONF)?))
    }

    /// Starts a server with this configuration; the variables are those of the configuration that operators use.
    ///
    /// # Errors
    /// If there is no nats-server, or it does not come up.
    pub fn start_from(conf: &str) -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        std::fs::write(dir.path().join("nats.conf"), conf)?;
        let port = fetch::free_port()?;
        let server = spawn(&dir, port)?;
        let nats = Self { dir, port, server };
        nats.wait_until_up()?;
        Ok(nats)
    }

    /// The server's address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Kills the server with SIGKILL, and starts it again on what it left.
    ///
    /// # Errors
    /// If it does not come up again.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.server.kill()?;
        self.server.wait()?;
        self.server = spawn(&self.dir, self.port)?;
        self.wait_until_up()
    }

    fn wait_until_up(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < UP_WITHIN {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            std::thread::yield_now();
        }
        let log = std::fs::read_to_string(self.dir.path().join(LOG)).unwrap_or_default();
        bail!("nats-server on port {} did not come up:\n{log}", self.port)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn spawn(dir: &TempDir, port: u16) -> anyhow::Result<Child> {
    let store = dir.path().join("store");
    let log = std::fs::File::create(dir.path().join(LOG))?;
    let server = Command::new(fetch::nats_server()?)
        .arg("--config")
        .arg(dir.path().join("nats.conf"))
        .env("JOBMESH_NATS_LISTEN", format!("\"127.0.0.1:{port}\""))
        .env("JOBMESH_NATS_STORE", format!("{:?}", store.display().to_string()))
        .env("JOBMESH_NATS_SYNC", "1s")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(server)
}
