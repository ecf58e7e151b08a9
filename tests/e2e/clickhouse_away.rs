//! ClickHouse away: jobs go on, and nothing is missing afterwards.

use std::time::{Duration, Instant};

use crate::mesh::{Mesh, until};

/// How long ClickHouse is away.
const AWAY: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_while_clickhouse_is_away_and_no_row_is_missing_afterwards() -> anyhow::Result<()>
{
    let mesh = Mesh::start()?;
    mesh.signal("olap", libc::SIGSTOP)?;
    let stopped = Instant::now();
    mesh.enqueue("p", 500).await?;
    until("all completed", async || {
        let counts = mesh.counts("p").await?;
        Ok(if counts["completed"] == 500 { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    assert!(stopped.elapsed() < AWAY, "jobs waited for ClickHouse");
    // The time away is what this test is about: it is no wait for a condition.
    tokio::time::sleep(AWAY.saturating_sub(stopped.elapsed())).await;
    mesh.signal("olap", libc::SIGCONT)?;
    until("in ClickHouse, each once", async || {
        let rows = mesh.sql("SELECT count(), uniqExact(job) FROM job_runs WHERE final").await?;
        Ok(if rows == "500\t500" { Ok(()) } else { Err(rows) })
    })
    .await
}
