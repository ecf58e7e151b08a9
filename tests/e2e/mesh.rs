//! A mesh under test: `jobmesh dev` with its children, a client, and the means to hurt it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, Range},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::api::{Api, sql};

/// How long a condition may take to become true.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running mesh. Dropping it kills `dev`, and the system its children.
pub struct Mesh {
    dev: Child,
    dir: TempDir,
    data_dir: PathBuf,
    api: Api,
}

impl Deref for Mesh {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Mesh {
    /// Starts a mesh and waits until it is ready.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts a mesh with these variables in its environment.
    pub fn start_with(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_in(TempDir::new()?, environment)
    }

    /// Starts a mesh with these arguments of `dev`, and these variables in its environment.
    pub fn start_with_arguments(
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        Self::launch(TempDir::new()?, "", arguments, environment)
    }

    /// Starts a mesh whose data directory is a directory of this name.
    pub fn start_named(dir: TempDir, name: &str) -> anyhow::Result<Self> {
        Self::launch(dir, name, &[], &[])
    }

    /// Starts a mesh on what another left behind.
    pub fn start_in(dir: TempDir, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::launch(dir, "", &[], environment)
    }

    fn launch(
        dir: TempDir,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let listen = free_address()?;
        let data_dir = dir.path().join(name);
        let mut dev = Command::new(env!("CARGO_BIN_EXE_tests"))
            .arg("dev")
            .args(["--listen", &listen.to_string()])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(arguments)
            // Beside other tests, state may take longer than it has before an answer is 202.
            .env("JOBMESH_REPLY_MS", "2000")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = dev.stdout.take().context("stdout is piped")?;
        let mut mesh = Self { dev, dir, data_dir, api: Api::new(listen)? };
        for line in BufReader::new(stdout).lines() {
            if line?.starts_with("ready http://") {
                return Ok(mesh);
            }
        }
        let ended = mesh.dev.wait()?;
        bail!("dev ended before it was ready: {ended}; logs:\n{}", mesh.logs())
    }

    /// What all children have logged.
    pub fn logs(&self) -> String {
        let files = fs::read_dir(self.data_dir.join("logs")).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
    }

    /// The URL of the broker, with the login for people.
    pub fn nats_url(&self) -> anyhow::Result<String> {
        self.nats_url_of("jobmesh", "nats.password")
    }

    /// The URL of the broker, with the login for processors.
    pub fn processor_nats_url(&self) -> anyhow::Result<String> {
        self.nats_url_of("processor", "nats.processor.password")
    }

    fn nats_url_of(&self, user: &str, file: &str) -> anyhow::Result<String> {
        let log = fs::read_to_string(self.data_dir.join("logs/nats-server.log"))?;
        let address =
            log.lines().rev().find_map(|line| line.split("client connections on ").nth(1));
        let address = address.context("the broker logs its address")?.trim();
        let password = fs::read_to_string(self.data_dir.join(file))?;
        Ok(format!("nats://{user}:{password}@{address}"))
    }

    /// A client of the broker.
    pub async fn nats_client(&self) -> anyhow::Result<async_nats::Client> {
        Ok(nats::Broker::connect(&self.nats_url()?, "test").await?.client)
    }

    /// The token of a run.
    pub async fn run_token(&self, job: &str, run: u32) -> anyhow::Result<String> {
        let broker = nats::Broker::connect(&self.nats_url()?, "test").await?;
        let tokens = broker.run_tokens().await?.context("a leader makes tokens")?;
        Ok(tokens.token(job.parse()?, run).to_string())
    }

    /// The URL of ClickHouse's interface.
    pub fn clickhouse_url(&self) -> anyhow::Result<String> {
        let log = fs::read_to_string(self.data_dir.join("logs/olap.log"))?;
        let listen = log.lines().rev().find_map(|line| line.split("listen=").nth(1));
        let listen = listen.context("olap logs its address")?.trim();
        let password = fs::read_to_string(self.data_dir.join("olap.password"))?;
        Ok(format!("http://reader:{password}@{listen}"))
    }

    /// The folder of its data.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process id of `dev`.
    pub fn id(&self) -> u32 {
        self.dev.id()
    }

    /// The process ids of the children.
    pub fn children(&self) -> Vec<u32> {
        let own = self.dev.id().to_string();
        processes().into_iter().filter(|(_, parent, _)| *parent == own).map(|(id, ..)| id).collect()
    }

    /// The process id of the child that runs this service.
    pub fn child(&self, service: &str) -> anyhow::Result<u32> {
        let own = self.dev.id().to_string();
        let runs = |words: &[String]| {
            words.get(2).is_some_and(|word| word == service)
                || words.first().is_some_and(|program| program.ends_with(service))
        };
        let found =
            processes().into_iter().find(|(_, parent, words)| *parent == own && runs(words));
        found.map(|(id, ..)| id).with_context(|| format!("no child runs {service}"))
    }

    /// The process id of the state service that leads, as the logs tell it.
    pub fn leader(&self) -> anyhow::Result<u32> {
        let mut leader = None;
        for id in self.children() {
            let Ok(log) = fs::read_link(format!("/proc/{id}/fd/1")) else { continue };
            let text = fs::read_to_string(log).unwrap_or_default();
            let terms = text.lines().filter_map(|line| line.split("leading term=").nth(1));
            let terms = terms.filter_map(|term| term.split(' ').next()?.parse::<u64>().ok());
            leader = leader.max(terms.max().map(|term| (term, id)));
        }
        leader.map(|(_, id)| id).context("no state service leads")
    }

    /// Sends a signal to the child that runs this service.
    pub fn signal(&self, service: &str, signal: i32) -> anyhow::Result<()> {
        send(self.child(service)?, signal)
    }

    /// Waits for the end of `dev`, and gives back the folder.
    pub fn wait(mut self) -> anyhow::Result<TempDir> {
        self.dev.wait()?;
        let dir = std::mem::replace(&mut self.dir, TempDir::new()?);
        Ok(dir)
    }

    /// Runs a query on the ClickHouse engine; its answer as text.
    pub async fn sql(&self, query: &str) -> anyhow::Result<String> {
        sql(&self.clickhouse_url()?, query).await
    }

    /// The URL of the ClickHouse engine with the login that metrics uses.
    pub fn writer_url(&self) -> anyhow::Result<String> {
        let password = fs::read_to_string(self.data_dir.join("olap.writer.password"))?;
        let url = self.clickhouse_url()?;
        let (_, address) = url.rsplit_once('@').context("the URL has a login")?;
        Ok(format!("http://writer:{password}@{address}"))
    }

    /// Changes rows on the ClickHouse engine.
    pub async fn write_sql(&self, statement: &str) -> anyhow::Result<()> {
        sql(&self.writer_url()?, statement).await.map(drop)
    }

    /// Waits until ClickHouse has one final row for each of `jobs` jobs, and no row twice.
    pub async fn until_ended_once(&self, jobs: usize) -> anyhow::Result<()> {
        let expected = format!("{jobs}\t{jobs}\t1");
        let query =
            "SELECT countIf(final), uniqExactIf(job, final), count() = uniqExact(job, run, outcome)
            FROM job_runs";
        until("in ClickHouse, each once", async || {
            let rows = self.sql(query).await?;
            Ok(if rows == expected { Ok(()) } else { Err(rows) })
        })
        .await
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.dev.kill();
        let _ = self.dev.wait();
        // Each service works with the permissions of its own login.
        let log = fs::read_to_string(self.data_dir.join("logs/nats-server.log"));
        let log = log.unwrap_or_default();
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
        if !refused.is_empty() && !std::thread::panicking() {
            panic!("the broker refused what a service needs:\n{}", refused.join("\n"));
        }
    }
}

/// Waits until `check` succeeds; reports its last error.
pub async fn until(
    what: &str,
    mut check: impl AsyncFnMut() -> anyhow::Result<Result<(), String>>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let last = match check().await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(last)) => last,
            // A service that is away for a moment is what many of these tests are about.
            Err(error) => format!("{error:#}"),
        };
        if begun.elapsed() > PATIENCE {
            bail!("not {what} within {} s: {last}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends a signal to a process that a test started.
pub fn send(id: u32, signal: i32) -> anyhow::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory.
    let sent = unsafe { libc::kill(i32::try_from(id)?, signal) };
    anyhow::ensure!(sent == 0, "no signal to process {id}");
    Ok(())
}

/// Whether a process runs, and is no zombie.
pub fn is_alive(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| {
        let state = rest.trim().chars().next();
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    })
}

/// All processes: id, parent's id, command line.
fn processes() -> Vec<(u32, String, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| {
        let proc = Path::new("/proc").join(id.to_string());
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.to_owned();
        let line = fs::read_to_string(proc.join("cmdline")).ok()?;
        Some((id, parent, line.split('\0').map(str::to_owned).collect()))
    })
    .collect()
}

/// The ports that tests choose: `dev` chooses lower ones.
const PORTS: Range<u16> = 24_576..32_768;

/// An address that was free a moment ago.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, fetch::free_port_in(PORTS)?)))
}
