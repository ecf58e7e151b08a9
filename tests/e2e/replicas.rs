//! Three state services: one leads, the others know as much and take over.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::mesh::{Mesh, send, until};

const JOBS: u64 = 2_000;
/// How long the mesh may be without a leader.
const TAKEOVER: Duration = Duration::from_secs(3);

async fn until_completed(mesh: &Mesh, jobs: u64) -> anyhow::Result<()> {
    until(&format!("{jobs} completed"), async || {
        let counts = mesh.counts("p").await?;
        Ok(if counts["completed"] == jobs { Ok(()) } else { Err(counts.to_string()) })
    })
    .await
}

/// Hurts the leader while jobs run, and times how long a new job takes from then on.
async fn time_without(mesh: &Mesh, leader: u32, signal: i32) -> anyhow::Result<Duration> {
    mesh.enqueue("p", JOBS as usize).await?;
    let begun = Instant::now();
    send(leader, signal)?;
    let body = json!({ "projectId": "p", "batchId": "during", "priority": 0 });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    let id = answer["jobId"].as_str().unwrap();
    until("queued by the next leader", async || {
        let (status, answer) = mesh.get(&format!("/api/queue/status/{id}")).await?;
        Ok(if status == 200 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    Ok(begun.elapsed())
}

/// Every replica gives the same answer.
async fn all_agree(mesh: &Mesh, jobs: u64) -> anyhow::Result<()> {
    for _ in 0..30 {
        let counts = mesh.counts("p").await?;
        assert_eq!((&counts["completed"], &counts["totalJobs"]), (&json!(jobs), &json!(jobs)));
    }
    mesh.until_ended_once(usize::try_from(jobs)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_followed_within_three_seconds() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_STATES", "3")])?;
    let leader = mesh.leader()?;
    let away = time_without(&mesh, leader, libc::SIGKILL).await?;
    println!("killed: a new job was queued after {away:?}");
    assert!(away < TAKEOVER, "{away:?}");
    assert_ne!(mesh.leader()?, leader);
    until_completed(&mesh, JOBS + 1).await?;
    all_agree(&mesh, JOBS + 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_is_followed_and_changes_nothing_when_it_wakes() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_STATES", "3")])?;
    let old = mesh.leader()?;
    let away = time_without(&mesh, old, libc::SIGSTOP).await?;
    println!("frozen: a new job was queued after {away:?}");
    assert!(away < TAKEOVER, "{away:?}");
    let new = mesh.leader()?;
    assert_ne!(new, old);
    // Questions are answered while a third of those who listen is frozen.
    for _ in 0..10 {
        let asked = Instant::now();
        mesh.counts("p").await?;
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    until_completed(&mesh, JOBS + 1).await?;
    mesh.enqueue("p", 100).await?;
    send(old, libc::SIGCONT)?;
    until_completed(&mesh, JOBS + 101).await?;
    assert_eq!(mesh.leader()?, new, "the woken one leads nothing");
    all_agree(&mesh, JOBS + 101).await
}

/// Read-your-writes: every replica knows what its client has just seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_what_it_wrote_from_any_replica() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_STATES", "3")])?;
    for n in 0..200 {
        let batch = format!("b{n}");
        let later = json!({ "projectId": "p", "batchId": batch, "runAt": "2999-01-01T00:00:00Z" });
        let answer = mesh.post("/api/queue/enqueue", later).await?;
        let job = mesh.job(answer["jobId"].as_str().unwrap()).await?;
        assert_eq!(job["status"], "queued");
        assert_eq!(mesh.counts("p").await?["queued"], n + 1);
        let weight = n % 100 + 1;
        assert_eq!(mesh.set("p", json!({ "weight": weight })).await?["weight"], weight);
    }
    Ok(())
}
