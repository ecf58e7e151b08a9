//! Requests over many jobs: carried out in slices, exactly, while others go on, whatever crashes.

use serde_json::json;

use crate::mesh::{Mesh, until};

/// More than ten slices.
pub const JOBS: usize = 6_000;

/// Enqueues jobs of different batches: `b0` and so on.
pub async fn enqueue_many(mesh: &Mesh, project: &str, jobs: usize) -> anyhow::Result<()> {
    let batches: Vec<String> = (0..jobs).map(|n| format!("b{n}")).collect();
    mesh.post("/api/queue/enqueue", json!({ "projectId": project, "batchIds": batches })).await?;
    Ok(())
}

pub async fn until_count(
    mesh: &Mesh,
    project: &str,
    what: &str,
    count: usize,
) -> anyhow::Result<()> {
    until(&format!("{count} jobs {what}"), async || {
        let counts = mesh.counts(project).await?;
        Ok(if counts[what] == count { Ok(()) } else { Err(counts.to_string()) })
    })
    .await
}

/// How many jobs a retry has queued again. A busy mesh may answer 202 first; the request is then repeated under
/// its key.
async fn retried(mesh: &Mesh, request: &str, key: &str) -> anyhow::Result<u64> {
    let mut count = 0;
    until("retried", async || {
        let (status, answer) =
            mesh.post_keyed("/api/queue/retry", request.to_owned(), Some(key)).await?;
        count = answer["retriedCount"].as_u64().unwrap_or(0);
        Ok(if status == 200 { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await?;
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_are_canceled_and_retried_exactly_whatever_crashes() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    mesh.set("p", json!({ "paused": true })).await?;
    enqueue_many(&mesh, "p", JOBS).await?;
    let cancel = json!({ "projectId": "p" }).to_string();
    let (canceled, killed) =
        tokio::join!(mesh.post_keyed("/api/queue/cancel", cancel.clone(), Some("all")), async {
            until("begun", async || {
                let canceled = mesh.counts("p").await?["canceled"].as_u64().unwrap_or(0);
                Ok(if canceled > 0 { Ok(()) } else { Err("none is canceled".to_owned()) })
            })
            .await?;
            mesh.signal("state", libc::SIGKILL)
        });
    killed?;
    canceled?;
    until("answered with all", async || {
        let (status, answer) =
            mesh.post_keyed("/api/queue/cancel", cancel.clone(), Some("all")).await?;
        let found = (status, &answer["canceledCount"], &answer["batchesReset"]);
        let is_all = found == (200, &json!(JOBS), &json!(JOBS));
        Ok(if is_all { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await?;
    until_count(&mesh, "p", "canceled", JOBS).await?;
    // Failed jobs that memory has evicted are read again for a retry.
    mesh.set("q", json!({ "handler": "missing", "maxAttempts": 1 })).await?;
    enqueue_many(&mesh, "q", JOBS).await?;
    until_count(&mesh, "q", "failed", JOBS).await?;
    mesh.set("q", json!({ "paused": true })).await?;
    let retry = json!({ "projectId": "q", "retryAll": true }).to_string();
    // Two requests at once: the second finds nothing left to do.
    let (one, two) = tokio::join!(retried(&mesh, &retry, "one"), retried(&mesh, &retry, "two"));
    let counts = [one?, two?];
    assert_eq!(counts.iter().sum::<u64>(), JOBS as u64, "{counts:?}");
    assert!(counts.contains(&0), "{counts:?}");
    until_count(&mesh, "q", "queued", JOBS).await?;
    // Jobs that are enqueued during the cancel are not canceled.
    let (canceled, newer) =
        tokio::join!(mesh.post("/api/queue/cancel", json!({ "projectId": "q" })), async {
            until("begun", async || {
                let canceled = mesh.counts("q").await?["canceled"].as_u64().unwrap_or(0);
                Ok(if canceled > 0 { Ok(()) } else { Err("none is canceled".to_owned()) })
            })
            .await?;
            mesh.post("/api/queue/enqueue", json!({ "projectId": "q", "batchId": "newer" })).await
        });
    newer?;
    assert_eq!(canceled?["canceledCount"], JOBS);
    until_count(&mesh, "q", "queued", 1).await
}
