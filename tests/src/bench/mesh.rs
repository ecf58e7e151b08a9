//! The mesh that is measured: `dev` without processors, which are started for each drain.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CONCURRENCY, DATA_BYTES};

/// How long a process may take to end.
const END_WITHIN: Duration = Duration::from_secs(60);

/// A running mesh, killed when it is dropped.
pub struct Mesh {
    dev: Child,
    dir: TempDir,
    client: Client,
    nats_url: String,
}

/// What processes have taken of the cores, by name, in microseconds.
pub type Cpu = Vec<(String, u64)>;

/// A client of its edge. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// A running processor, killed when it is dropped.
pub struct Processor(Child);

impl Mesh {
    /// Starts a mesh.
    pub async fn start() -> anyhow::Result<Self> {
        // Another part of the process may have chosen first: then that choice holds.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(super::PATIENCE).build()?;
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let dir = TempDir::new()?;
        let mut dev = Command::new(std::env::current_exe()?)
            .args(["dev", "--processors", "0", "--durability", "fast"])
            .args(["--listen", &listen.to_string()])
            .arg("--data-dir")
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = dev.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.starts_with("ready http://")));
        ensure!(ready, "dev did not become ready");
        let log = fs::read_to_string(dir.path().join("logs/nats-server.log"))?;
        let port = log.lines().find_map(|line| line.split("client connections on ").nth(1));
        let nats_url = format!("nats://{}", port.context("the broker says where it is")?.trim());
        let client = Client { base: format!("http://{listen}"), http };
        Ok(Self { dev, dir, client, nats_url })
    }

    /// A client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Changes the settings of a project.
    pub async fn set(&self, project: &str, change: Value) -> anyhow::Result<()> {
        let url = format!("{}/api/projects/{project}", self.client.base);
        let answer = self.client.http.put(url).body(change.to_string()).send().await?;
        ensure!(answer.status() == 200, "settings: {}", answer.text().await?);
        Ok(())
    }

    /// One of the counts over all projects.
    pub async fn count(&self, what: &str) -> anyhow::Result<u64> {
        self.count_at("/api/queue/stats", what).await
    }

    /// One of the counts of a project.
    pub async fn count_of(&self, project: &str, what: &str) -> anyhow::Result<u64> {
        self.count_at(&format!("/api/queue/stats?projectId={project}"), what).await
    }

    async fn count_at(&self, path: &str, what: &str) -> anyhow::Result<u64> {
        let url = format!("{}{path}", self.client.base);
        let begun = Instant::now();
        loop {
            let answer = self.client.http.get(&url).send().await?;
            // While state folds a request of a hundred thousand jobs it does not answer in time.
            if answer.status() == 503 && begun.elapsed() < super::PATIENCE {
                continue;
            }
            let text = answer.error_for_status()?.text().await?;
            let stats: Value = serde_json::from_str(&text)?;
            let count = stats["queue"][what].as_u64();
            return count.with_context(|| format!("no count of {what}: {text}"));
        }
    }

    /// Waits until a state service leads again: until it has folded a new job.
    pub async fn until_led(&self, patience: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        let url = format!("{}/api/queue/enqueue", self.client.base);
        let body = json!({ "projectId": "led", "batchId": "b" }).to_string();
        loop {
            let answer = self.client.http.post(&url).body(body.clone()).send().await;
            match answer.map(|answer| answer.status().as_u16()) {
                Ok(200) => return Ok(()),
                // Durable, and folded as soon as somebody leads.
                Ok(202) => break,
                other => ensure!(begun.elapsed() < patience, "nobody leads: {other:?}"),
            }
        }
        while self.count_of("led", "queued").await.unwrap_or(0) == 0 {
            ensure!(begun.elapsed() < patience, "nobody leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// How many ends of jobs of a project metrics has counted.
    pub async fn rows_of(&self, project: &str) -> anyhow::Result<u64> {
        let path = format!("/api/queue/metrics?projectId={project}&timeRange=24h");
        let answer: Value = serde_json::from_str(&self.client.get(&path).await?)?;
        answer["stats"]["total"].as_u64().context("metrics has a total")
    }

    /// Waits until a processor is there.
    pub async fn until_processor(&self, patience: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let stats: Value = serde_json::from_str(&self.client.get("/api/queue/stats").await?)?;
            if stats["worker"]["isRunning"] == true {
                return Ok(());
            }
            ensure!(begun.elapsed() < patience, "no processor came");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What each service has taken of the cores so far, in microseconds.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let mut cpu = Cpu::new();
        for (name, id) in self.children()? {
            let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
            let rest = stat.rsplit(')').next().unwrap_or_default();
            // User and system time, in ticks of 10 ms, are words 12 and 13 behind the name.
            let ticks = rest.split_whitespace().skip(11).take(2);
            let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
            cpu.push((name, ticks * 10_000));
        }
        Ok(cpu)
    }

    /// Lets a processor run all that is queued.
    pub async fn drain_rest(&self) -> anyhow::Result<()> {
        let processor = self.start_processor()?;
        while self.count("queued").await? + self.count("processing").await? > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        processor.stop().await
    }

    /// Starts a processor.
    pub fn start_processor(&self) -> anyhow::Result<Processor> {
        let log = fs::File::create(self.dir.path().join("logs/processor.log"))?;
        let processor = Command::new(std::env::current_exe()?)
            .args(["serve", "processor", "--nats-url", &self.nats_url])
            .args(["--concurrency", &CONCURRENCY.to_string()])
            .args(["--handler", "process_batch=noop"])
            .stderr(log)
            .spawn()?;
        Ok(Processor(processor))
    }

    /// Kills the state service; `dev` starts it again.
    pub fn kill_state(&self) -> anyhow::Result<()> {
        let children = self.children()?;
        let state = children.iter().find(|(name, _)| name == "state");
        let (_, id) = state.context("no state service runs")?;
        send(*id, libc::SIGKILL)
    }

    /// The resident memory of each service, in MB.
    pub fn rss_mb(&self) -> anyhow::Result<Vec<(String, u64)>> {
        let mut sizes = Vec::new();
        for (name, id) in self.children()? {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            sizes.push((name, kb.context("a process has a size")? / 1_024));
        }
        Ok(sizes)
    }

    /// Ends the mesh.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        send(self.dev.id(), libc::SIGINT)?;
        wait(&mut self.dev).await
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
            let service = if program.starts_with("nats-server") { program } else { words[2] };
            children.push((service.to_owned(), id));
        }
        children.sort();
        Ok(children)
    }
}

impl Client {
    /// A GET that must succeed: its body.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.stream(path).await?.text().await?)
    }

    /// A GET that must succeed, of which the body is still to come.
    pub async fn stream(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await?;
        Ok(answer.error_for_status()?)
    }

    /// A POST of JSON that must succeed.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.base)).body(body.to_string());
        let answer = request.send().await?.error_for_status()?;
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    /// Host and port of the edge.
    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// The body of a request for one job.
    pub fn one(&self, project: &str, batch: &str) -> String {
        let data = json!({ "text": text(batch) });
        json!({ "projectId": project, "batchId": batch, "data": data }).to_string()
    }

    /// Enqueues one job; returns its id.
    pub async fn enqueue_one(&self, project: &str, batch: &str) -> anyhow::Result<String> {
        let body = serde_json::from_str(&self.one(project, batch))?;
        let answer = self.post("/api/queue/enqueue", &body).await?;
        Ok(answer["jobId"].as_str().context("the answer names a job")?.to_owned())
    }

    /// Enqueues `count` jobs, in batches that no other request names.
    pub async fn enqueue(&self, project: &str, request: usize, count: usize) -> anyhow::Result<()> {
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let batches: Vec<String> = (0..count).map(|n| format!("{stamp}-{request}-{n}")).collect();
        let data: serde_json::Map<String, Value> =
            batches.iter().map(|batch| (batch.clone(), json!({ "text": text(batch) }))).collect();
        let body = json!({ "projectId": project, "batchIds": batches, "data": data });
        let url = format!("{}/api/queue/enqueue", self.base);
        let answer = self.http.post(url).body(body.to_string()).send().await?;
        ensure!(answer.status().is_success(), "enqueue: {}", answer.text().await?);
        Ok(())
    }
}

/// A text of no pattern, so that nothing is won by compressing it: the same for the same batch.
fn text(batch: &str) -> String {
    let mut x = batch.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |x, byte| {
        (x ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let letter = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        char::from(b'a' + (x % 26) as u8)
    };
    (0..DATA_BYTES - r#"{"text":""}"#.len()).map(letter).collect()
}

impl Processor {
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
