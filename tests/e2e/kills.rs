//! kill -9 of every service, and of the broker, while jobs run: nothing is lost, nothing ends twice.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::mesh::{Mesh, until};

/// An edge answers within a second; the rest is for the other tests.
const ANSWERS_WITHIN: Duration = Duration::from_millis(1_900);
/// Jobs that run while a service is killed.
const JOBS: usize = 2_000;

async fn survives_the_kill_of(service: &str) -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let killed = mesh.child(service)?;
    let jobs = mesh.enqueue("p", JOBS).await?;
    let mut done = 0;
    until("under way", async || {
        let counts = mesh.counts("p").await?;
        done = counts["completed"].as_u64().unwrap_or(0);
        Ok(if done > 50 { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    assert!(done < JOBS as u64, "all is done before the kill: nothing is shown");
    mesh.signal(service, libc::SIGKILL)?;
    until("started again", async || {
        let now = mesh.child(service)?;
        Ok(if now == killed { Err("not yet".into()) } else { Ok(()) })
    })
    .await?;
    until("all ended", async || {
        let counts = mesh.counts("p").await?;
        let live = [&counts["queued"], &counts["processing"]];
        Ok(if live == [&json!(0), &json!(0)] { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    let counts = mesh.counts("p").await?;
    assert_eq!(counts["completed"], JOBS, "{counts}");
    assert_eq!(counts["totalJobs"], JOBS, "{counts}");
    for id in &jobs {
        assert_eq!(mesh.job(id).await?["status"], "completed");
    }
    mesh.until_ended_once(JOBS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_state_service_loses_nothing() -> anyhow::Result<()> {
    survives_the_kill_of("state").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_processor_loses_nothing() -> anyhow::Result<()> {
    survives_the_kill_of("processor").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_metrics_service_counts_nothing_twice() -> anyhow::Result<()> {
    survives_the_kill_of("metrics").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_olap_loses_no_row() -> anyhow::Result<()> {
    survives_the_kill_of("olap").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_edge_loses_nothing() -> anyhow::Result<()> {
    survives_the_kill_of("edge").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_loses_nothing() -> anyhow::Result<()> {
    survives_the_kill_of("nats-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_state_away_enqueue_answers_202_and_status_still_answers() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_REPLY_MS", "900")])?;
    let known = mesh.enqueue("p", 1).await?.remove(0);
    until("completed", async || {
        let job = mesh.job(&known).await?;
        Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    mesh.signal("state", libc::SIGSTOP)?;
    let body = json!({ "projectId": "p", "batchId": "later" }).to_string();
    let asked_at = Instant::now();
    let (status, accepted) = mesh.post_raw("/api/queue/enqueue", body).await?;
    assert_eq!(status, 202, "{accepted}");
    assert!(asked_at.elapsed() < ANSWERS_WITHIN, "it took {:?}", asked_at.elapsed());
    let (status, answer) = mesh.get(&format!("/api/queue/status/{known}")).await?;
    assert_eq!((status, &answer["job"]["status"]), (200, &json!("completed")));
    assert_eq!(answer["mayBeBehind"], true);
    let (status, _) = mesh.get("/api/queue/stats").await?;
    assert_eq!(status, 503);
    mesh.signal("state", libc::SIGCONT)?;
    let id = accepted["jobId"].as_str().unwrap().to_owned();
    until("completed", async || {
        let job = mesh.job(&id).await?;
        Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    Ok(())
}
