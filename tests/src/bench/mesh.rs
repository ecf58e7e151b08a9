//! The mesh that is measured: `dev` without processors, which are started for each drain.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::{CONCURRENCY, client::Client};

/// How long a process may take to end.
const END_WITHIN: Duration = Duration::from_secs(60);
/// How long the services must be nearly idle to count as at rest.
const QUIET: Duration = Duration::from_millis(500);

/// When acked messages are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// At most a second later.
    Fast,
    /// Before the ack.
    Always,
}

impl Durability {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Always => "always",
        }
    }
}

/// A running mesh, killed when it is dropped.
pub struct Mesh {
    dev: Child,
    dir: TempDir,
    client: Client,
    nats_url: String,
    /// True if its processes measure.
    is_measured: bool,
}

/// A running processor, killed when it is dropped.
pub struct Processor(Child);

/// The resources that a process has used so far.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// Time of the cores, in microseconds.
    pub cpu_us: u64,
    /// Bytes that it made the disk write.
    pub written: u64,
    /// Resident memory, in MB.
    pub rss_mb: u64,
}

impl Mesh {
    /// Starts a mesh.
    pub async fn start(durability: Durability) -> anyhow::Result<Self> {
        Self::start_with(durability, &[]).await
    }

    /// Starts a mesh with further arguments.
    pub async fn start_with(durability: Durability, arguments: &[&str]) -> anyhow::Result<Self> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, fetch::free_port()?));
        let dir = TempDir::new()?;
        let mut dev = Command::new(std::env::current_exe()?)
            .args(["dev", "--processors", "0", "--durability", durability.name()])
            .args(["--listen", &listen.to_string()])
            .args(arguments)
            .arg("--data-dir")
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = dev.stdout.take().context("stdout is piped")?;
        let own = arguments.iter().skip_while(|word| **word != "--nats-url").nth(1);
        let mut nats_url = own.map(|url| (*url).to_owned());
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if let Some(address) = line.strip_prefix("nats nats://") {
                let address = address.split(',').next().unwrap_or_default();
                let password = fs::read_to_string(dir.path().join("nats.password"))?;
                nats_url = Some(format!("nats://jobmesh:{password}@{address}"));
            }
            if line.starts_with("ready http://") {
                let client = Client::new(listen.to_string());
                let nats_url = nats_url.context("dev says where the broker is")?;
                let is_measured = arguments.contains(&"--metrics");
                return Ok(Self { dev, dir, client, nats_url, is_measured });
            }
        }
        bail!("dev did not become ready");
    }

    /// The addresses of the measurements of its services.
    pub fn measured(&self) -> anyhow::Result<Vec<String>> {
        let list = fs::read(self.dir.path().join("prometheus-targets.json"))?;
        let list: serde_json::Value = serde_json::from_slice(&list)?;
        let targets = list.as_array().into_iter().flatten();
        let targets = targets.filter_map(|it| it["targets"][0].as_str().map(str::to_owned));
        Ok(targets.collect())
    }

    /// A client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The URL of its broker, with its login.
    pub fn nats_url(&self) -> &str {
        &self.nats_url
    }

    /// Waits until a state service leads again and has processed a new job.
    pub async fn until_led(&self, patience: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        let body = json!({ "projectId": "led", "batchId": "b" }).to_string();
        let mut connection = self.client.connect().await?;
        loop {
            match connection.ask("POST", "/api/queue/enqueue", &body).await?.status {
                200 => return Ok(()),
                // Durable, and processed as soon as there is a leader.
                202 => break,
                other => ensure!(begun.elapsed() < patience, "there is no leader: {other}"),
            }
        }
        while connection.count(Some("led"), "queued").await? == 0 {
            ensure!(begun.elapsed() < patience, "nobody leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until a processor is there.
    pub async fn until_processor(&self, patience: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.client.get("/api/queue/stats").await?["worker"]["isRunning"] != true {
            ensure!(begun.elapsed() < patience, "no processor came");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Lets a processor run all that is queued.
    pub async fn drain_rest(&self) -> anyhow::Result<()> {
        let processor = self.start_processor()?;
        let mut connection = self.client.connect().await?;
        while connection.count(None, "queued").await? + connection.count(None, "processing").await?
            > 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        processor.stop().await
    }

    /// Starts a processor whose handler does nothing.
    pub fn start_processor(&self) -> anyhow::Result<Processor> {
        self.start_processor_with(CONCURRENCY)
    }

    /// Starts a processor with this number of slots whose handler does nothing.
    pub fn start_processor_with(&self, slots: usize) -> anyhow::Result<Processor> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "processor", "--handler", "process_batch=noop"]);
        self.spawn(command, slots).map(Processor)
    }

    /// Starts a process that runs jobs, with the settings that all of them have.
    pub fn spawn(&self, mut command: Command, slots: usize) -> anyhow::Result<Child> {
        let log = fs::File::create(self.dir.path().join("logs/processor.log"))?;
        command.env("JOBMESH_NATS_URL", &self.nats_url);
        command.args(["--concurrency", &slots.to_string()]).stderr(log);
        if self.is_measured {
            let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, fetch::free_port()?));
            command.args(["--metrics-listen", &listen.to_string()]);
        }
        Ok(command.spawn()?)
    }

    /// Checks that each accepted job of a project ended once, and that none ran twice.
    pub async fn check_once(&self, project: &str, jobs: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.client.rows_of(project).await? < jobs {
            ensure!(begun.elapsed() < super::PATIENCE, "not all rows came");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let query = format!(
            "SELECT count(), uniqExact(job), countIf(final) FROM jobmesh.job_runs \
             WHERE project = '{project}' FORMAT TSV"
        );
        let found = self.sql("reader", &query).await?;
        let wanted = format!("{jobs}\t{jobs}\t{jobs}");
        ensure!(found == wanted, "{project}: runs, jobs, ends are {found}, not {wanted}");
        Ok(())
    }

    /// Runs a statement as a user of its engine; the answer as text.
    pub async fn sql(&self, user: &str, statement: &str) -> anyhow::Result<String> {
        let olap = self.arguments("olap")?;
        let listen = olap.iter().skip_while(|word| *word != "--listen").nth(1);
        let listen = listen.context("the engine listens")?.clone();
        let file = if user == "writer" { "olap.writer.password" } else { "olap.password" };
        let password = fs::read_to_string(self.dir.path().join(file))?;
        let path = format!("/?user={user}&password={password}");
        let answer = Client::new(listen).connect().await?.ask("POST", &path, statement).await?;
        let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
        ensure!(answer.status == 200, "{text}");
        Ok(text)
    }

    /// Kills the state service; `dev` starts it again.
    pub fn kill_state(&self) -> anyhow::Result<()> {
        let children = self.children()?;
        let state = children.iter().find(|(name, _)| name == "state");
        let (_, id) = state.context("no state service runs")?;
        send(*id, libc::SIGKILL)
    }

    /// The resources that each service and a processor have used so far; the last entry is this
    /// program, the client.
    pub fn usage(&self, processor: Option<&Processor>) -> anyhow::Result<Vec<Usage>> {
        let mut processes = self.children()?;
        processes.extend(processor.map(|processor| ("processor".to_owned(), processor.0.id())));
        processes.push(("the client".to_owned(), std::process::id()));
        processes.into_iter().map(|(name, id)| usage(name, id)).collect()
    }

    /// The processor time of each service so far, to the microsecond.
    pub fn cpu_times(&self) -> anyhow::Result<BTreeMap<String, Duration>> {
        let children = self.children()?;
        children.into_iter().map(|(name, id)| Ok((name, cpu_time(id)?))).collect()
    }

    /// Waits until the services have nothing more to do.
    pub async fn until_quiet(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut before = self.cpu_times()?;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.cpu_times()?;
            let is_busy = |(name, time): (&String, &Duration)| {
                time.saturating_sub(before.get(name).copied().unwrap_or_default()) > QUIET / 20
            };
            if !now.iter().any(is_busy) {
                return Ok(());
            }
            ensure!(begun.elapsed() < super::PATIENCE, "the services never come to rest");
            before = now;
        }
    }

    /// Ends the mesh.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        send(self.dev.id(), libc::SIGINT)?;
        wait(&mut self.dev).await
    }

    /// What nats-server says of its version.
    pub fn nats_version(&self) -> anyhow::Result<String> {
        let program = self.arguments("nats-server")?.swap_remove(0);
        let output = Command::new(program).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().replace(": v", " "))
    }

    /// The command line of a service.
    fn arguments(&self, service: &str) -> anyhow::Result<Vec<String>> {
        let children = self.children()?;
        let child = children.iter().find(|(name, _)| name == service);
        let (_, id) = child.with_context(|| format!("no {service} runs"))?;
        let line = fs::read_to_string(format!("/proc/{id}/cmdline"))?;
        Ok(line.split('\0').map(str::to_owned).collect())
    }

    /// The services that `dev` runs, with their process ids.
    fn children(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let own = self.dev.id().to_string();
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
            if parent != Some(own.as_str()) {
                continue;
            }
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&str> = line.split('\0').collect();
            let program = words.first().and_then(|word| Path::new(word).file_name());
            let program = program.and_then(|name| name.to_str()).unwrap_or_default();
            let service = match words.get(2) {
                _ if program.starts_with("nats-server") => program,
                Some(service) => service,
                // One that ends.
                None => continue,
            };
            children.push((service.to_owned(), id));
        }
        children.sort();
        Ok(children)
    }
}

fn cpu_time(id: u32) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{id}/task"))?.flatten() {
        // A thread may have exited since.
        let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let ns = stat.split_whitespace().next().and_then(|ns| ns.parse().ok());
        sum += Duration::from_nanos(ns.unwrap_or_default());
    }
    Ok(sum)
}

fn usage(name: String, id: u32) -> anyhow::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let rest = stat.rsplit(')').next().unwrap_or_default();
    // User and system time, in ticks of 10 ms, are words 12 and 13 behind the name.
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let number = |file: &str, key: &str| {
        let text = fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
    };
    let rss_kb = number("status", "VmRSS:").context("a process has a size")?;
    let written = number("io", "write_bytes:").unwrap_or_default();
    Ok(Usage { name, cpu_us: ticks * 10_000, written, rss_mb: rss_kb / 1_024 })
}

impl Processor {
    /// A process that is one.
    pub fn of(process: Child) -> Self {
        Self(process)
    }

    /// Lets it drain, and waits for its end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        send(self.0.id(), libc::SIGTERM)?;
        wait(&mut self.0).await
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.dev.kill();
        let _ = self.dev.wait();
    }
}

async fn wait(process: &mut Child) -> anyhow::Result<()> {
    let begun = Instant::now();
    while process.try_wait()?.is_none() {
        if begun.elapsed() > END_WITHIN {
            bail!("process {} does not end", process.id());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn send(id: u32, signal: i32) -> anyhow::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory.
    let sent = unsafe { libc::kill(i32::try_from(id)?, signal) };
    ensure!(sent == 0, "no signal to process {id}");
    Ok(())
}
