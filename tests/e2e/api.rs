//! A client of the HTTP API, as the tests use it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::mesh::PATIENCE;

/// How long a stream may be read, whatever it carries; each test bounds its own waits.
const LONGEST_STREAM: Duration = Duration::from_secs(3_600);

/// An edge.
#[derive(Clone)]
pub struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    /// The edge that listens on this address.
    pub fn new(listen: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { base: format!("http://{listen}"), client: client()? })
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A GET: status and body.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    /// A GET of a stream that goes on.
    pub async fn follow(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let request = self.client.get(format!("{}{path}", self.base)).timeout(LONGEST_STREAM);
        Ok(request.send().await?.error_for_status()?)
    }

    /// A POST of a body as it is: status and body.
    pub async fn post_raw(&self, path: &str, body: String) -> anyhow::Result<(u16, Value)> {
        self.post_keyed(path, body, None).await
    }

    /// A POST with an idempotency key.
    pub async fn post_keyed(
        &self,
        path: &str,
        body: String,
        key: Option<&str>,
    ) -> anyhow::Result<(u16, Value)> {
        let mut request = self.client.post(format!("{}{path}", self.base)).body(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    /// A PUT of a body as it is: status and body.
    pub async fn put_raw(&self, path: &str, body: String) -> anyhow::Result<(u16, Value)> {
        let answer = self.client.put(format!("{}{path}", self.base)).body(body).send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    /// A DELETE: status and body.
    pub async fn delete(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        let answer = self.client.delete(format!("{}{path}", self.base)).send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    /// Changes the settings of a project; returns them.
    pub async fn set(&self, project: &str, change: Value) -> anyhow::Result<Value> {
        let path = format!("/api/projects/{project}");
        let (status, answer) = self.put_raw(&path, change.to_string()).await?;
        anyhow::ensure!(status == 200, "{path} answered {status}: {answer}");
        Ok(answer["project"].clone())
    }

    /// A POST of JSON that must succeed.
    pub async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let (status, answer) = self.post_raw(path, body.to_string()).await?;
        anyhow::ensure!((200..300).contains(&status), "{path} answered {status}: {answer}");
        Ok(answer)
    }

    /// Enqueues `count` batches of a project, each with some data; returns their jobs.
    pub async fn enqueue(&self, project: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let batches: Vec<String> = (0..count).map(|n| format!("batch-{n}")).collect();
        let data: serde_json::Map<String, Value> =
            batches.iter().map(|b| (b.clone(), serde_json::json!({ "text": b }))).collect();
        let body = serde_json::json!({ "projectId": project, "batchIds": batches, "data": data });
        let answer = self.post("/api/queue/enqueue", body).await?;
        let ids = answer["jobIds"].as_array().context("jobIds")?;
        Ok(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
    }

    /// The counts of a project.
    pub async fn counts(&self, project: &str) -> anyhow::Result<Value> {
        let (status, answer) = self.get(&format!("/api/queue/stats?projectId={project}")).await?;
        anyhow::ensure!(status == 200, "stats answered {status}: {answer}");
        Ok(answer["queue"].clone())
    }

    /// The status of a job.
    pub async fn job(&self, id: &str) -> anyhow::Result<Value> {
        let (status, answer) = self.get(&format!("/api/queue/status/{id}")).await?;
        anyhow::ensure!(status == 200, "status of {id} answered {status}: {answer}");
        Ok(answer["job"].clone())
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    // Another test may have chosen first: then that choice holds.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()
}

/// Runs a query on the tables of a mesh; its answer as text.
pub async fn sql(url: &str, query: &str) -> anyhow::Result<String> {
    sql_in(url, "jobmesh", query).await
}

/// Runs a query on a ClickHouse engine; its answer as text.
pub async fn sql_in(url: &str, database: &str, query: &str) -> anyhow::Result<String> {
    let answer =
        client()?.post(format!("{url}/?database={database}")).body(query.to_owned()).send().await?;
    anyhow::ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(answer.text().await?.trim().to_owned())
}
