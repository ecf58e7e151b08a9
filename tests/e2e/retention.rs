//! Rows that ClickHouse deletes after their retention, and the sums that outlive them.

use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;

use crate::{backup, mesh::Mesh};

/// Ended runs of 40 days ago.
const OLD: &str = "INSERT INTO job_runs (sequence, idx, at, project, batch, job, type, class, run, attempt, outcome,
        final, ran, duration_ms, tokens_in, error, error_group)
    SELECT 0, number, now64(3) - toIntervalDay(40), 'p', 'b', generateUUIDv4(), 'process_batch', 'normal', 1, 1,
        if(number = 0, 'failed', 'completed'), 1, 1, 100, 10, if(number = 0, 'no', ''), number = 0
    FROM numbers(5)";

/// Completed jobs and input tokens of the last 60 days, and failed jobs.
async fn sums(mesh: &Mesh) -> anyhow::Result<[String; 3]> {
    let from = Timestamp::now() - Duration::from_secs(60 * 24 * 3_600);
    let path = format!("/api/queue/analytics?projectId=p&bucket=day&from={from}");
    let (_, answer) = mesh.get(&path).await?;
    let totals = &answer["analytics"]["totals"][0];
    let (_, failures) = mesh.get("/api/queue/failures?projectId=p").await?;
    let sums = [&totals["completed"], &totals["inputTokens"], &failures["groups"][0]["jobs"]];
    Ok(sums.map(ToString::to_string))
}

#[tokio::test(flavor = "multi_thread")]
async fn old_runs_are_deleted_and_their_sums_are_in_backups() -> anyhow::Result<()> {
    let environment = [
        ("JOBMESH_RUNS_RETENTION_DAYS", "30"),
        ("JOBMESH_SUMS_RETENTION_DAYS", "400"),
        ("JOBMESH_AUDIT_RETENTION_DAYS", "0"),
    ];
    let mesh = Mesh::start_with(&environment)?;
    mesh.enqueue("p", 1).await?;
    mesh.until_ended_once(1).await?;
    mesh.write_sql(OLD).await?;
    let before = sums(&mesh).await?;
    let [completed, _, failed] = &before;
    assert_eq!((completed.as_str(), failed.as_str()), ("5", "1"), "the rows are there");
    mesh.write_sql("OPTIMIZE TABLE job_runs FINAL").await?;
    assert_eq!(mesh.sql("SELECT count() FROM job_runs").await?, "1");
    assert_eq!(sums(&mesh).await?, before);
    let ttl = "SELECT name, extract(engine_full, 'TTL [^ ]+ \\\\+ toIntervalDay\\\\(([0-9]+)\\\\)') FROM system.tables
        WHERE database = 'jobmesh' AND name IN ('job_runs', 'runs_by_hour', 'audit') ORDER BY name";
    assert_eq!(mesh.sql(ttl).await?, "audit\t\njob_runs\t30\nruns_by_hour\t400");

    // A backup of a restored mesh, whose tables have no retention as none is set, has the sums, too.
    let mut mesh = mesh;
    for _ in 0..2 {
        let dirs = TempDir::new()?;
        let dir = dirs.path().join("backup");
        let (succeeded, text) = backup::run(&mesh, "backup", &dir).await?;
        assert!(succeeded, "{text}");
        drop(mesh);
        mesh = Mesh::start_with_arguments(&["--restore", dir.to_str().expect("UTF-8")], &[])?;
        assert_eq!(sums(&mesh).await?, before);
        assert_eq!(mesh.sql("SELECT count() FROM job_runs").await?, "1");
        assert_eq!(mesh.sql(ttl).await?, "audit\t\njob_runs\t\nruns_by_hour");
    }
    Ok(())
}
