//! A client of the edge: connections that are kept, and ask one thing after the other. A whole HTTP
//! client takes more of the cores for a request than the edge does, and is not what is measured.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::{TcpSocket, TcpStream},
};

use super::DATA_BYTES;

/// The address of the edge. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    /// The header with its API key; empty if it has none.
    authorization: String,
    /// The address that its connections come from; any if absent.
    source: Option<IpAddr>,
}

/// A connection to the edge.
pub struct Connection {
    stream: BufStream<TcpStream>,
    host: String,
    authorization: String,
}

/// An answer, read whole.
pub struct Answer {
    /// Its HTTP status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Its JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

impl Client {
    pub fn new(address: String) -> Self {
        Self { address, authorization: String::new(), source: None }
    }

    /// The same with an API key.
    pub fn with_key(&self, key: &str) -> Self {
        let authorization = format!("Authorization: Bearer {key}\r\n");
        Self { authorization, ..self.clone() }
    }

    /// The same with connections from this address.
    pub fn from(&self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    /// A connection on which nothing was sent.
    pub async fn open(&self) -> anyhow::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = self.source {
            socket.bind((source, 0).into())?;
        }
        let stream = socket.connect(self.address.parse()?).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection of its own.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = self.open().await?;
        let (host, authorization) = (self.address.clone(), self.authorization.clone());
        Ok(Connection { stream: BufStream::new(stream), host, authorization })
    }

    /// A GET that must succeed: its body.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.connect().await?.get(path).await?.json()
    }

    /// A POST of JSON that must be accepted, but may not be processed yet.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let answer = self.connect().await?.ask("POST", path, &body.to_string()).await?;
        ensure!([200, 202].contains(&answer.status), "{path} answered {}", answer.status);
        Ok(())
    }

    /// Changes the settings of a project.
    pub async fn set(&self, project: &str, change: Value) -> anyhow::Result<()> {
        let path = format!("/api/projects/{project}");
        let answer = self.connect().await?.ask("PUT", &path, &change.to_string()).await?;
        ensure!(answer.status == 200, "{path} answered {}", answer.status);
        Ok(())
    }

    /// One of the counts, of one project or over all.
    pub async fn count(&self, project: Option<&str>, what: &str) -> anyhow::Result<u64> {
        self.connect().await?.count(project, what).await
    }

    /// How many ends of jobs of a project metrics has counted.
    pub async fn rows_of(&self, project: &str) -> anyhow::Result<u64> {
        let path = format!("/api/queue/metrics?projectId={project}&timeRange=24h");
        self.get(&path).await?["stats"]["total"].as_u64().context("metrics has a total")
    }
}

impl Connection {
    /// A GET that must succeed.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        let answer = self.ask("GET", path, "").await?;
        ensure!(answer.status == 200, "{path} answered {}", answer.status);
        Ok(answer)
    }

    /// A POST that must succeed.
    pub async fn post(&mut self, path: &str, body: &str) -> anyhow::Result<Answer> {
        let answer = self.ask("POST", path, body).await?;
        let said = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == 200, "{path} answered {}: {said}", answer.status);
        Ok(answer)
    }

    /// Enqueues one job; returns its id.
    pub async fn enqueue_one(&mut self, project: &str, batch: &str) -> anyhow::Result<String> {
        let answer = self.post("/api/queue/enqueue", &one(project, batch)).await?.json()?;
        Ok(answer["jobId"].as_str().context("the answer names a job")?.to_owned())
    }

    /// One of the counts, of one project or over all.
    pub async fn count(&mut self, project: Option<&str>, what: &str) -> anyhow::Result<u64> {
        let of = project.map_or(String::new(), |project| format!("?projectId={project}"));
        let path = format!("/api/queue/stats{of}");
        let begun = Instant::now();
        loop {
            let answer = self.ask("GET", &path, "").await?;
            // No state service answers while another one takes over.
            if answer.status == 503 && begun.elapsed() < super::PATIENCE {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            ensure!(answer.status == 200, "{path} answered {}", answer.status);
            let count = answer.json()?["queue"][what].as_u64();
            return count.with_context(|| format!("{path} has no count of {what}"));
        }
    }

    /// Asks and reads the whole answer.
    pub async fn ask(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Answer> {
        self.send(method, path, body).await?;
        let (status, length) = self.read_head().await?;
        let mut body = vec![0; length.context("an answer has a length")?];
        self.stream.read_exact(&mut body).await?;
        Ok(Answer { status, body })
    }

    /// Asks for a stream of events; its bytes are then to be read by [`more`](Self::more).
    pub async fn follow(&mut self, path: &str) -> anyhow::Result<()> {
        self.send("GET", path, "").await?;
        let (status, _) = self.read_head().await?;
        ensure!(status == 200, "{path} answered {status}");
        Ok(())
    }

    /// More of a stream, appended to `to`.
    pub async fn more(&mut self, to: &mut Vec<u8>) -> anyhow::Result<()> {
        let read = self.stream.fill_buf().await?;
        let length = read.len();
        if length == 0 {
            bail!("a stream of events ended");
        }
        to.extend_from_slice(read);
        self.stream.consume(length);
        Ok(())
    }

    /// Sends a request.
    pub async fn send(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        let (host, authorization, length) = (&self.host, &self.authorization, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Length: {length}\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.write_all(body.as_bytes()).await?;
        Ok(self.stream.flush().await?)
    }

    /// The status, and the length of the body if it is given.
    pub async fn read_head(&mut self) -> anyhow::Result<(u16, Option<usize>)> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status line: {line:?}"))?;
        let mut length = None;
        while line != "\r\n" {
            line.clear();
            ensure!(self.stream.read_line(&mut line).await? > 0, "an answer ended in its head");
            let header = line.split_once(':');
            let header = header.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            if let Some((_, value)) = header {
                length = Some(value.trim().parse()?);
            }
        }
        Ok((status, length))
    }
}

/// The body of a request for one job.
pub fn one(project: &str, batch: &str) -> String {
    let data = json!({ "text": text(batch) });
    json!({ "projectId": project, "batchId": batch, "data": data }).to_string()
}

/// The body of a request for many jobs.
pub fn many(project: &str, batches: &[String]) -> String {
    let data: serde_json::Map<String, Value> =
        batches.iter().map(|batch| (batch.clone(), json!({ "text": text(batch) }))).collect();
    json!({ "projectId": project, "batchIds": batches, "data": data }).to_string()
}

/// A text of no pattern, so that nothing is won by compressing it: the same for the same batch.
pub fn text(batch: &str) -> String {
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
