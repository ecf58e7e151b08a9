//! Requests one by one, and how long they take.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::StreamExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
};

use super::mesh::Client;

/// Latencies, in ms.
pub struct Latencies(Vec<f64>);

impl Latencies {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    /// The value that this share of them does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// A connection that is kept, and asks one thing after the other. A whole HTTP client takes more of
/// the cores for a request than the edge does, and is not what is measured.
struct Connection {
    stream: BufStream<TcpStream>,
    host: String,
}

impl Connection {
    async fn open(client: &Client) -> anyhow::Result<Self> {
        let host = client.address().to_owned();
        let stream = TcpStream::connect(&host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufStream::new(stream), host })
    }

    /// A POST that must be answered by 200.
    async fn post(&mut self, path: &str, body: &str) -> anyhow::Result<()> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.write_all(body.as_bytes()).await?;
        self.stream.flush().await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{path} answered {line}");
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let header = line
                .split_once(':')
                .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            if let Some((_, value)) = header {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        Ok(())
    }
}

/// Enqueues jobs one a request from so many callers: jobs a second, and how long each took.
pub async fn singles(
    client: &Client,
    project: &'static str,
    callers: usize,
    jobs: usize,
) -> anyhow::Result<(f64, Latencies)> {
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let client = client.clone();
        running.spawn(async move {
            let mut times = Vec::new();
            let mut connection = Connection::open(&client).await?;
            for n in 0..jobs / callers {
                let body = client.one(project, &format!("{callers}-{caller}-{n}"));
                let asked = Instant::now();
                connection.post("/api/queue/enqueue", &body).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = running.join_next().await {
        times.extend(ended??);
    }
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    Ok((rate, Latencies::new(times)))
}

/// Asks for `paths` in turn, every so often, for a while: how long each answer took, by path.
pub async fn ask(
    client: &Client,
    paths: &[String],
    every: Duration,
    during: Duration,
) -> anyhow::Result<Vec<Latencies>> {
    let mut times = vec![Vec::new(); paths.len()];
    let begun = Instant::now();
    let mut tick = tokio::time::interval(every);
    while begun.elapsed() < during {
        for (path, times) in paths.iter().zip(&mut times) {
            tick.tick().await;
            let asked = Instant::now();
            client.get(path).await?;
            times.push(asked.elapsed());
        }
    }
    Ok(times.into_iter().map(Latencies::new).collect())
}

/// Follows each of these batches of a project until its job has completed; ends when all have
/// heard of it.
pub async fn hear_all(
    client: &Client,
    project: &str,
    batches: &[String],
) -> anyhow::Result<tokio::task::JoinSet<anyhow::Result<()>>> {
    let mut hearing = tokio::task::JoinSet::new();
    for batch in batches {
        let path = format!("/api/queue/events?projectId={project}&batchId={batch}");
        let mut stream = client.stream(&path).await?.bytes_stream();
        hearing.spawn(async move {
            let mut heard = Vec::new();
            while let Some(chunk) = stream.next().await {
                heard.extend_from_slice(&chunk?);
                if String::from_utf8_lossy(&heard).contains("event: completed") {
                    return Ok(());
                }
            }
            anyhow::bail!("a stream ended before its job was completed")
        });
    }
    Ok(hearing)
}

/// Followers of events, each in a task of its own; returns how many bytes they heard in all once
/// `during` is over.
pub async fn follow(
    client: &Client,
    project: &str,
    followers: usize,
    during: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<usize> {
    let mut running = tokio::task::JoinSet::new();
    let stop = tokio::sync::watch::channel(false).0;
    for _ in 0..followers {
        let path = format!("/api/queue/events?projectId={project}");
        let mut stream = client.stream(&path).await?.bytes_stream();
        let mut stopped = stop.subscribe();
        running.spawn(async move {
            let mut heard = 0;
            loop {
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => return heard,
                    chunk = stream.next() => match chunk {
                        Some(Ok(chunk)) => heard += chunk.len(),
                        _ => return heard,
                    },
                }
            }
        });
    }
    during.await?;
    stop.send_replace(true);
    let mut heard = 0;
    while let Some(ended) = running.join_next().await {
        let bytes: usize = ended?;
        ensure!(bytes > 0, "a follower heard nothing");
        heard += bytes;
    }
    Ok(heard)
}
