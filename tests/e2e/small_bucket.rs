//! A bucket that cannot hold all ended jobs for their retention: work goes on, and ended jobs leave it earlier.

use std::time::Duration;

use serde_json::json;

use crate::mesh::{Mesh, until};

/// The size of the bucket, in MB.
const BUCKET_MB: usize = 32;
/// The data of a job, and the jobs of a request.
const DATA_BYTES: usize = 20_000;
const JOBS: usize = 5;
/// One MB a second.
const REQUEST_EVERY: Duration = Duration::from_millis(100);
/// Requests whose jobs would fill the bucket twice.
const REQUESTS: usize = 2 * BUCKET_MB * (1 << 20) / (JOBS * DATA_BYTES);

#[tokio::test(flavor = "multi_thread")]
async fn a_steady_rate_of_jobs_is_never_refused_for_want_of_room() -> anyhow::Result<()> {
    let bucket = BUCKET_MB.to_string();
    let mesh = Mesh::start_with(&[
        ("JOBMESH_JOBS_MB", &bucket),
        ("JOBMESH_RETENTION_S", "600"),
        ("JOBMESH_HANDLERS", "process_batch=noop"),
    ])?;
    let text = "x".repeat(DATA_BYTES);
    let mut interval = tokio::time::interval(REQUEST_EVERY);
    let mut first = None;
    for n in 0..REQUESTS {
        interval.tick().await;
        let batches: Vec<String> = (0..JOBS).map(|job| format!("b{n}-{job}")).collect();
        let data = batches.iter().map(|batch| (batch.clone(), json!({ "text": text })));
        let data: serde_json::Map<_, _> = data.collect();
        let body = json!({ "projectId": "p", "batchIds": batches, "data": data });
        let (status, answer) =
            mesh.post_keyed("/api/queue/enqueue", body.to_string(), None).await?;
        assert_eq!(status, 200, "request {n} of {REQUESTS}: {answer}");
        first.get_or_insert_with(|| answer["jobIds"][0].as_str().expect("an id").to_owned());
    }
    until("all completed", async || {
        let counts = mesh.counts("p").await?;
        let is_done = counts["completed"] == REQUESTS * JOBS;
        Ok(if is_done { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    let last = mesh.enqueue("p", 1).await?.remove(0);
    until("the last job, with its data", async || {
        let job = mesh.job(&last).await?;
        Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    // The first ones had to stay for their whole retention; of those in the middle only ClickHouse knows.
    assert_eq!(mesh.job(&first.expect("one was enqueued")).await?["status"], "completed");
    let archived =
        mesh.sql("SELECT toString(any(job)) FROM job_runs WHERE batch = 'b450-0'").await?;
    until("out of the bucket", async || {
        let job = mesh.job(&archived).await?;
        Ok(if job["archived"] == true { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    assert!(mesh.logs().contains("the bucket of jobs is filling"));
    Ok(())
}
