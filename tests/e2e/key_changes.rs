//! Changes of API keys: revocation and rotation, made at one edge and seen at another.

use std::{
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::{
    keys::{Answer, ask, ask_at, create},
    mesh::{Mesh, PATIENCE, free_address, until},
};

/// Another edge of a mesh, killed when it is dropped.
struct Edge {
    process: Child,
    url: String,
}

impl Edge {
    async fn start(mesh: &Mesh) -> anyhow::Result<Self> {
        let listen = free_address()?.to_string();
        let mut edge = Command::new(env!("CARGO_BIN_EXE_tests"));
        edge.args(["serve", "edge", "--listen", &listen, "--nats-url", &mesh.nats_url()?]);
        let edge = Self { process: edge.spawn()?, url: format!("http://{listen}") };
        until("served", async || {
            let status = edge.ask(&Method::GET, "/healthz", None, None).await?.status;
            Ok(if status == 200 { Ok(()) } else { Err(status.to_string()) })
        })
        .await?;
        Ok(edge)
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        ask_at(format!("{}{path}", self.url), method, key, body).await
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_keys_end_and_rotated_keys_go_on_at_every_edge() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let edge = Edge::start(&mesh).await?;
    let (_, admin) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let (id, old) =
        create(&mesh, Some(&admin), json!({ "name": "worker", "scope": "enqueue" })).await?;
    let enqueue = json!({ "projectId": "p", "batchId": "b" });
    // Changes are made at one edge, and seen at the other.
    let send = async |key: &str| {
        let answer = edge.ask(&Method::POST, "/api/queue/enqueue", Some(key), Some(&enqueue));
        anyhow::Ok(answer.await?.status)
    };
    let until_statuses = async |what: &str, keys: &[(&str, u16)]| {
        until(what, async || {
            let mut wrong = Vec::new();
            for (key, expected) in keys {
                let status = send(key).await?;
                wrong.extend((status != *expected).then_some(status));
            }
            Ok(if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong:?}")) })
        })
        .await
    };
    until_statuses("in force", &[(&old, 200)]).await?;
    let client = Client::builder().no_proxy().build()?;
    let events = format!("{}/api/queue/events", edge.url);
    let events = client.get(events).bearer_auth(&old).send().await?;
    let mut events = events.bytes_stream();
    assert!(events.next().await.is_some(), "a stream begins");
    // A client goes on with its secret while the key is rotated: no request is refused.
    let is_rotated = AtomicBool::new(false);
    let goes_on = async {
        let mut sent = 0;
        while !is_rotated.load(Ordering::Relaxed) {
            assert_eq!(send(&old).await?, 200, "after {sent} requests");
            sent += 1;
        }
        anyhow::Ok(sent)
    };
    let path = format!("/api/keys/{id}/rotate");
    let rotate = async {
        let answer = ask(&mesh, &Method::POST, &path, Some(&admin), Some(&json!({}))).await?;
        let new = answer.json()["secret"].as_str().expect("secret").to_owned();
        assert!(answer.json()["key"]["oldSecretUntil"].is_string(), "{answer:?}");
        until_statuses("rotated", &[(&new, 200), (&old, 200)]).await?;
        is_rotated.store(true, Ordering::Relaxed);
        anyhow::Ok(new)
    };
    let (sent, new) = tokio::try_join!(goes_on, rotate)?;
    assert!(sent > 0);
    // A second rotation drops the oldest secret at once, and `0s` the one before.
    let keep = json!({ "keepOldFor": "0s" });
    let answer = ask(&mesh, &Method::POST, &path, Some(&admin), Some(&keep)).await?;
    let newest = answer.json()["secret"].as_str().expect("secret").to_owned();
    until_statuses("rotated again", &[(&old, 401), (&new, 401), (&newest, 200)]).await?;
    // The stream of the secret that was replaced has ended.
    let rest = async { while events.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, rest).await?;
    let path = format!("/api/keys/{id}");
    assert_eq!(ask(&mesh, &Method::DELETE, &path, Some(&admin), None).await?.status, 200);
    let revoked_at = Instant::now();
    until_statuses("revoked", &[(&newest, 401)]).await?;
    assert!(revoked_at.elapsed() < Duration::from_secs(1), "{:?}", revoked_at.elapsed());
    let listed = ask(&mesh, &Method::GET, "/api/keys", Some(&admin), None).await?.json();
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(1), "{listed}");
    assert!(listed["keys"][0]["lastUsedAt"].is_string(), "{listed}");
    assert!(!listed.to_string().contains("sha256"), "{listed}");
    Ok(())
}
