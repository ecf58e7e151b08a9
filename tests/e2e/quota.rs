//! The share of a project: what it may have queued and running, and who may change that.

use anyhow::Context;
use serde_json::{Value, json};

use crate::mesh::{Mesh, until};

const ENQUEUE: &str = "/api/queue/enqueue";

fn jobs(project: &str, from: usize, count: usize) -> String {
    let batches: Vec<String> = (from..from + count).map(|n| format!("b{n}")).collect();
    json!({ "projectId": project, "batchIds": batches }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn project_at_its_limit_is_refused_and_others_are_not() -> anyhow::Result<()> {
    // Nothing runs: jobs stay active.
    let mesh = Mesh::start_with(&[("JOBMESH_MAX_ACTIVE_JOBS", "100")])?;
    for project in ["greedy", "modest"] {
        mesh.set(project, json!({ "paused": true })).await?;
    }
    let (status, answer) = mesh.post_raw(ENQUEUE, jobs("greedy", 0, 100)).await?;
    assert_eq!(status, 200, "{answer}");
    let client = reqwest::Client::builder().no_proxy().build()?;
    // What can never be accepted is not sent again.
    let refused = client.post(mesh.url(ENQUEUE)).body(jobs("greedy", 100, 101)).send().await?;
    assert_eq!((refused.status().as_u16(), refused.headers().get("retry-after")), (422, None));
    let refused: Value = refused.json().await?;
    assert_eq!(refused["code"], "larger_than_limit", "{refused}");
    let refused = client.post(mesh.url(ENQUEUE)).body(jobs("greedy", 100, 1)).send().await?;
    assert_eq!(refused.status().as_u16(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let refused: Value = refused.json().await?;
    assert_eq!(refused["code"], "project_full");
    assert!(refused["error"].as_str().is_some_and(|it| it.contains("maxActiveJobs of 100")));
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("modest", 0, 100)).await?.0, 200);
    // A job takes the place of the one that it supersedes.
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("greedy", 0, 10)).await?.0, 200);
    let schedule = json!({ "cron": "* * * * *", "batchId": "s" }).to_string();
    let path = "/api/projects/greedy/schedules/each-minute";
    let (status, answer) = mesh.put_raw(path, schedule).await?;
    assert_eq!(status, 200, "{answer}");
    until("skipped", async || {
        let (_, answer) = mesh.get(path).await?;
        let is_skipped =
            answer["schedule"]["lastAt"].is_string() && answer["schedule"]["lastJobId"].is_null();
        Ok(if is_skipped { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    assert_eq!(mesh.counts("greedy").await?["queued"], 100);
    // An ended job makes room, also after another state service has taken over.
    mesh.signal("state", libc::SIGKILL)?;
    let cancel = json!({ "projectId": "greedy", "batchIds": ["b99"] });
    until("canceled", async || {
        let (status, answer) = mesh.post_raw("/api/queue/cancel", cancel.to_string()).await?;
        Ok(if status == 200 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    mesh.delete(path).await?;
    until("room for one", async || {
        let (status, answer) = mesh.post_raw(ENQUEUE, jobs("greedy", 200, 1)).await?;
        Ok(if status == 200 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    let usage = mesh.set("greedy", json!({ "maxActiveJobs": 101 })).await?;
    assert_eq!(usage["maxActiveJobs"], 101, "{usage}");
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("greedy", 300, 1)).await?.0, 200);
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("greedy", 301, 1)).await?.0, 429);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn project_enqueues_no_more_in_a_minute_than_its_limit_and_others_do() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    mesh.set("greedy", json!({ "enqueuesPerMinute": 50 })).await?;
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("greedy", 0, 40)).await?.0, 200);
    let (status, answer) = mesh.post_raw(ENQUEUE, jobs("greedy", 40, 11)).await?;
    let error = answer["error"].as_str().unwrap_or_default();
    assert_eq!((status, &answer["code"]), (429, &json!("project_full")));
    assert!(error.contains("enqueuesPerMinute of 50") && error.contains("retry in"), "{error}");
    let request = reqwest::Client::builder().no_proxy().build()?.post(mesh.url(ENQUEUE));
    let refused = request.body(jobs("greedy", 40, 11)).send().await?;
    let header = refused.headers().get("retry-after").and_then(|it| it.to_str().ok());
    let retry_after: u64 = header.context("Retry-After")?.parse()?;
    let error = refused.json::<Value>().await?["error"].to_string();
    assert!(error.contains(&format!("retry in {retry_after} s")), "{retry_after}: {error}");
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("greedy", 40, 10)).await?.0, 200);
    // A leader that takes over knows what was enqueued.
    mesh.signal("state", libc::SIGKILL)?;
    until("refused by the next leader", async || {
        let (status, answer) = mesh.post_raw(ENQUEUE, jobs("greedy", 50, 1)).await?;
        assert_ne!(status, 200, "{answer}");
        Ok(if status == 429 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    assert_eq!(mesh.post_raw(ENQUEUE, jobs("modest", 0, 100)).await?.0, 200);
    let (_, project) = mesh.get("/api/projects/greedy").await?;
    assert_eq!(project["project"]["usage"]["enqueuedInLastMinute"], 50, "{project}");
    Ok(())
}
