//! Limits of what one API key may keep open.

use reqwest::{Client, Response, header::RETRY_AFTER};
use serde_json::json;

use crate::{
    keys::create,
    mesh::{Mesh, until},
};

const WAITING_MAX: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn one_key_has_so_many_waiting_requests_and_others_have_theirs() -> anyhow::Result<()> {
    let max = WAITING_MAX.to_string();
    let environment = [("JOBMESH_MAX_WAITING_PER_KEY", max.as_str())];
    let mesh = Mesh::start_with_arguments(&["--processors", "0"], &environment)?;
    let (_, admin) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let key = json!({ "name": "dashboard", "scope": "read" });
    let (_, greedy) = create(&mesh, Some(&admin), key).await?;
    let client = Client::builder().no_proxy().build()?;
    let get = async |key: &str, path: &str| -> anyhow::Result<Response> {
        Ok(client.get(mesh.url(path)).bearer_auth(key).send().await?)
    };
    let enqueue = client.post(mesh.url("/api/queue/enqueue")).bearer_auth(&admin);
    let enqueued = enqueue.json(&json!({ "projectId": "p", "batchId": "b" })).send().await?;
    let enqueued: serde_json::Value = enqueued.json().await?;
    let job = enqueued["jobId"].as_str().unwrap_or_default();
    let status = format!("/api/queue/status/{job}");
    let long_poll = format!("{status}?wait=60s");
    let mut streams = Vec::new();
    until("in force", async || {
        let stream = get(&greedy, "/api/queue/events").await?;
        let status = stream.status();
        streams.extend((status == 200).then_some(stream));
        Ok(if streams.len() == WAITING_MAX { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    for path in ["/api/queue/events", &long_poll] {
        let refused = get(&greedy, path).await?;
        assert_eq!(refused.status(), 429, "{path}");
        assert!(refused.headers().contains_key(RETRY_AFTER), "{path}");
        let error: serde_json::Value = refused.json().await?;
        assert_eq!(error["code"], "too_many_waiting", "{error}");
    }
    // What does not wait is answered, and so are other keys.
    assert_eq!(get(&greedy, &status).await?.status(), 200);
    assert_eq!(get(&greedy, &format!("{status}?wait=0s")).await?.status(), 200);
    assert_eq!(get(&admin, "/api/queue/events").await?.status(), 200);
    // The edge notices that a client has closed its stream.
    streams.pop();
    until("free again", async || {
        let stream = get(&greedy, "/api/queue/events").await?;
        Ok(if stream.status() == 200 { Ok(()) } else { Err(stream.status().to_string()) })
    })
    .await
}

/// With keys of its own or none.
#[tokio::test(flavor = "multi_thread")]
async fn one_project_has_so_many_waiting_requests_and_others_have_theirs() -> anyhow::Result<()> {
    let max = WAITING_MAX.to_string();
    let environment = [("JOBMESH_MAX_WAITING_PER_PROJECT", max.as_str())];
    let mesh = Mesh::start_with_arguments(&["--processors", "0"], &environment)?;
    let client = Client::builder().no_proxy().build()?;
    let get = async |path: &str| anyhow::Ok(client.get(mesh.url(path)).send().await?);
    let job = mesh.enqueue("greedy", 1).await?.remove(0);
    let (events, live) = ("/api/queue/events?projectId=greedy", "/api/queue/live?projectId=greedy");
    let long_poll = format!("/api/queue/status/{job}?wait=60s");
    let mut streams = vec![get(events).await?, get(live).await?, get(events).await?];
    assert!(streams.iter().all(|stream| stream.status() == 200), "{streams:?}");
    for path in [events, live, &long_poll] {
        let refused = get(path).await?;
        assert_eq!(refused.status(), 429, "{path}");
        let error: serde_json::Value = refused.json().await?;
        assert!(error["error"].as_str().is_some_and(|it| it.contains("this project")), "{error}");
    }
    assert_eq!(get("/api/queue/events?projectId=modest").await?.status(), 200);
    assert_eq!(get(&format!("/api/queue/status/{job}")).await?.status(), 200);
    streams.pop();
    until("free again", async || {
        let stream = get(events).await?;
        Ok(if stream.status() == 200 { Ok(()) } else { Err(stream.status().to_string()) })
    })
    .await
}
