//! Jobs that are stopped: superseded, cancelled while queued, cancelled while running.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::mesh::{Mesh, until};

/// Counts the requests that are being answered, for as long as they are.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server that never answers; returns its URL and how many requests it works on.
async fn endless() -> anyhow::Result<(String, Arc<AtomicUsize>)> {
    let running = Arc::new(AtomicUsize::new(0));
    let counted = running.clone();
    let answer = async move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let _running = Running(counted.clone());
        std::future::pending::<()>().await;
    };
    let router = axum::Router::new().route("/", axum::routing::post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((url, running))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_job_of_a_batch_and_a_cancel_stop_the_running_handler_within_a_second()
-> anyhow::Result<()> {
    let (url, running) = endless().await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_HANDLERS", "process_batch=http"),
        ("JOBMESH_HTTP_URL", &url),
    ])?;
    let one = json!({ "projectId": "p", "batchId": "b" });
    let first = mesh.post("/api/queue/enqueue", one.clone()).await?;
    let busy = async || {
        let n = running.load(Ordering::SeqCst);
        Ok(if n == 1 { Ok(()) } else { Err(format!("{n} requests run")) })
    };
    until("running", busy).await?;
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
    until("alone", busy).await?;
    let begun = Instant::now();
    let canceled = mesh.post("/api/queue/cancel", json!({ "projectId": "p" })).await?;
    assert_eq!((&canceled["canceledCount"], &canceled["batchesReset"]), (&json!(1), &json!(1)));
    until("stopped", async || {
        let n = running.load(Ordering::SeqCst);
        Ok(if n == 0 { Ok(()) } else { Err(format!("{n} requests run")) })
    })
    .await?;
    assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
    let counts = mesh.counts("p").await?;
    assert_eq!((&counts["canceled"], &counts["totalJobs"]), (&json!(2), &json!(2)));
    Ok(())
}
