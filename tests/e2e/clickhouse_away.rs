//! ClickHouse away: jobs go on, and nothing is missing afterwards.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    services::program,
};

/// How long ClickHouse is away.
const AWAY: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_while_clickhouse_is_away_and_no_row_is_missing_afterwards() -> anyhow::Result<()>
{
    let mesh = Mesh::start()?;
    mesh.signal("olap", libc::SIGSTOP)?;
    let stopped = Instant::now();
    mesh.enqueue("p", 500).await?;
    // A change, which goes to the audit log.
    mesh.set("q", json!({ "paused": true })).await?;
    until("all completed", async || {
        let counts = mesh.counts("p").await?;
        Ok(if counts["completed"] == 500 { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    assert!(stopped.elapsed() < AWAY, "jobs waited for ClickHouse");
    // Each background task shows its last result, and doctor those that failed.
    until("noticed", async || {
        let (_, answer) = mesh.get("/api/tasks").await?;
        let tasks = answer["tasks"].as_array().context("tasks")?;
        let result = |name: &str| tasks.iter().find(|it| it["task"] == name).map(|it| &it["ok"]);
        let found = ["clickhouse check", "election", "bucket", "events", "stream fill"].map(result);
        let expected = [false, true, true, true, true].map(Value::from);
        let is_so = found.into_iter().eq(expected.iter().map(Some));
        Ok(if is_so { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    let mut doctor = Command::new(program());
    doctor.args(["doctor", "--json", "--url", &mesh.url("")]);
    let found = tokio::task::spawn_blocking(move || doctor.output()).await??;
    let found: Value = serde_json::from_slice(&found.stdout)?;
    let mut checks = found["checks"].as_array().context("checks")?.iter();
    let tasks = checks.find(|check| check["check"] == "tasks").context("a check of tasks")?;
    let says = tasks["says"].as_str().unwrap_or_default();
    assert!(tasks["ok"] == false && says.contains("clickhouse check of metrics-"), "{tasks}");
    // The time away is what this test is about: it is no wait for a condition.
    tokio::time::sleep(AWAY.saturating_sub(stopped.elapsed())).await;
    mesh.signal("olap", libc::SIGCONT)?;
    until("all tasks succeed again", async || {
        let (_, answer) = mesh.get("/api/tasks").await?;
        let tasks = answer["tasks"].as_array().context("tasks")?;
        let has_inserted = |name: &str| {
            let mut instances = tasks.iter().filter(|it| it["task"] == name);
            instances.any(|it| it["succeeded"].as_u64().is_some_and(|count| count > 0))
        };
        let is_so = ["rows", "audit log"].into_iter().all(has_inserted)
            && tasks.iter().all(|task| task["ok"] == true);
        Ok(if is_so { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    until("in ClickHouse, each once", async || {
        let rows = mesh.sql("SELECT count(), uniqExact(job) FROM job_runs WHERE final").await?;
        Ok(if rows == "500\t500" { Ok(()) } else { Err(rows) })
    })
    .await
}
