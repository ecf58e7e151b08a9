//! Jobs that are stopped: superseded, and cancelled while they run.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{mesh::until, receiver::Receiver};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_job_of_a_batch_and_a_cancel_stop_the_running_handler_within_a_second()
-> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let one = json!({ "projectId": "p", "batchId": "b" });
    let first = mesh.post("/api/queue/enqueue", one.clone()).await?;
    receiver.until_running(1).await?;
    let second = mesh.post("/api/queue/enqueue", one).await?;
    assert_eq!(second["canceledCount"], 1, "{second}");
    let (old, new) = (first["jobId"].as_str().unwrap(), second["jobId"].as_str().unwrap());
    let stopped = mesh.job(old).await?;
    assert_eq!(stopped["status"], "canceled", "{stopped}");
    assert_eq!(stopped["supersededBy"], new);
    until("the newer job running", async || {
        let job = mesh.job(new).await?;
        Ok(if job["status"] == "processing" { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    receiver.until_running(1).await?;
    let begun = Instant::now();
    let canceled = mesh.post("/api/queue/cancel", json!({ "projectId": "p" })).await?;
    assert_eq!((&canceled["canceledCount"], &canceled["batchesReset"]), (&json!(1), &json!(1)));
    receiver.until_running(0).await?;
    assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
    let counts = mesh.counts("p").await?;
    assert_eq!((&counts["canceled"], &counts["totalJobs"]), (&json!(2), &json!(2)));
    Ok(())
}
