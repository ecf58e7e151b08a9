//! A thousand batches in one request, to the last job and token.

use anyhow::Context;
use serde_json::json;

use crate::mesh::{Mesh, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_batches_complete_and_stats_and_metrics_agree() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let jobs = mesh.enqueue("invoices", 1_000).await?;
    assert_eq!(jobs.len(), 1_000);
    until("all completed", async || {
        let counts = mesh.counts("invoices").await?;
        Ok(if counts["completed"] == 1_000 { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    let counts = mesh.counts("invoices").await?;
    assert_eq!(counts["totalJobs"], 1_000);
    let mut tokens = 0;
    for id in &jobs {
        let job = mesh.job(id).await?;
        assert_eq!(job["status"], "completed", "{job}");
        assert_eq!(job["attempts"], 1, "{job}");
        tokens += job["tokens"]["input"].as_u64().context("tokens")?;
    }
    let path = "/api/queue/metrics?projectId=invoices";
    until("in the metrics", async || {
        let (_, answer) = mesh.get(path).await?;
        let total = answer["stats"]["total"].as_u64();
        Ok(if total == Some(1_000) { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    for range in ["24h", "7d", "30d", "all"] {
        let (status, answer) = mesh.get(&format!("{path}&timeRange={range}")).await?;
        assert_eq!(status, 200);
        let stats = &answer["stats"];
        assert_eq!(stats["timeRange"], range);
        assert_eq!(stats["successful"], 1_000, "{stats}");
        assert_eq!(stats["successRate"], 1.0);
        assert_eq!(stats["totalTokens"], tokens);
        assert_eq!(stats["byType"]["process_batch"]["count"], 1_000);
        let hours = stats["hourlyBreakdown"].as_array().context("hours")?;
        let counted: u64 = hours.iter().filter_map(|hour| hour["count"].as_u64()).sum();
        assert_eq!(counted, 1_000);
        let expected = match range {
            "24h" => 24,
            "7d" => 168,
            "30d" => 720,
            _ => hours.len(),
        };
        assert_eq!(hours.len(), expected);
    }
    let (_, all) = mesh.get("/api/queue/metrics").await?;
    assert_eq!(all["stats"]["totalTokens"], tokens);
    assert_eq!(mesh.sql("SELECT count(), uniqExact(job, run) FROM job_runs").await?, "1000\t1000");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_with_the_same_key_gets_the_first_answer_also_after_a_restart()
-> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let body = json!({ "projectId": "p", "batchIds": ["a", "b"] }).to_string();
    let path = "/api/queue/enqueue";
    let (status, first) = mesh.post_keyed(path, body.clone(), Some("k1")).await?;
    assert_eq!(status, 200, "{first}");
    let (_, again) = mesh.post_keyed(path, body.clone(), Some("k1")).await?;
    assert_eq!(first, again);
    let other = json!({ "projectId": "p", "batchIds": ["c"] }).to_string();
    let (status, refused) = mesh.post_keyed(path, other, Some("k1")).await?;
    assert_eq!((status, &refused["code"]), (422, &json!("idempotency_key_reused")));
    mesh.signal("state", libc::SIGKILL)?;
    mesh.signal("nats-server", libc::SIGKILL)?;
    until("answered again", async || {
        let (status, again) = mesh.post_keyed(path, body.clone(), Some("k1")).await?;
        Ok(if status == 200 && again == first { Ok(()) } else { Err(again.to_string()) })
    })
    .await?;
    assert_eq!(mesh.counts("p").await?["totalJobs"], 2);
    Ok(())
}
