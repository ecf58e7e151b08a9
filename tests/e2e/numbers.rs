//! Every part counts the same: what the handler did, `stats`, `metrics`, analytics, failures, lists of projects and SQL
//! agree to the last job and token.

use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

const PROJECTS: [&str; 3] = ["one", "two", "three"];
/// Jobs of each kind and project: done twice as often as rejected, or failed with two attempts.
const OF_KIND: u64 = 10;
const CANCELED: u64 = 30;

async fn get(mesh: &Mesh, path: &str) -> anyhow::Result<Value> {
    let (status, answer) = mesh.get(path).await?;
    anyhow::ensure!(status == 200, "{path}: {answer}");
    Ok(answer)
}

/// The named numbers of an object.
fn numbers(object: &Value, names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| object[name].as_u64().unwrap_or(u64::MAX)).collect()
}

async fn until_idle(mesh: &Mesh) -> anyhow::Result<()> {
    until("idle", async || {
        let queue = get(mesh, "/api/queue/stats").await?["queue"].clone();
        let is_idle = numbers(&queue, &["queued", "processing"]) == [0, 0];
        Ok(if is_idle { Ok(()) } else { Err(queue.to_string()) })
    })
    .await
}

async fn operate(mesh: &Mesh, request: Value, changed: u64) -> anyhow::Result<()> {
    let answer = mesh.post("/api/queue/operations", request).await?;
    let id = answer["operation"]["operationId"].as_str().expect("its id").to_owned();
    until("finished", async || {
        let operation =
            get(mesh, &format!("/api/queue/operations/{id}")).await?["operation"].clone();
        let is_done = operation["status"] == "finished" && operation["changed"] == changed;
        Ok(if is_done { Ok(()) } else { Err(operation.to_string()) })
    })
    .await
}

/// Runs jobs of all kinds, retries one group of failures and cancels what is queued.
async fn work(mesh: &Mesh) -> anyhow::Result<()> {
    for project in PROJECTS {
        let kinds = ["done", "reject", "done", "fail"].into_iter().cycle();
        let data: serde_json::Map<String, Value> = (0..4 * OF_KIND)
            .zip(kinds)
            .map(|(n, kind)| (format!("batch-{n}"), json!({ "do": kind })))
            .collect();
        let batches: Vec<&String> = data.keys().collect();
        let body = json!({ "projectId": project, "batchIds": batches, "data": data });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    until_idle(mesh).await?;
    let mut group = Value::Null;
    until("grouped", async || {
        let failures = get(mesh, "/api/queue/failures").await?;
        let groups = failures["groups"].as_array().cloned().unwrap_or_default();
        let rejected = groups
            .iter()
            .find(|group| group["pattern"].as_str().is_some_and(|pattern| pattern.contains("422")));
        group = rejected.map_or(Value::Null, |group| group["errorGroup"].clone());
        Ok(if group.is_null() { Err(failures.to_string()) } else { Ok(()) })
    })
    .await?;
    let retry =
        json!({ "action": "retry", "allProjects": true, "filter": { "errorGroup": group } });
    operate(mesh, retry, 3 * OF_KIND).await?;
    until_idle(mesh).await?;
    for project in PROJECTS {
        mesh.set(project, json!({ "paused": true })).await?;
        let batches: Vec<String> = (0..CANCELED).map(|n| format!("canceled-{n}")).collect();
        let body = json!({ "projectId": project, "batchIds": batches });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    mesh.post("/api/queue/cancel", json!({ "projectId": PROJECTS[0] })).await?;
    let cancel =
        json!({ "action": "cancel", "allProjects": true, "filter": { "status": "queued" } });
    operate(mesh, cancel, 2 * CANCELED).await
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_agree_to_the_last_job_and_token() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_MAX_ATTEMPTS", "2")])?;
    work(&mesh).await?;
    let completed = 2 * OF_KIND;
    // Rejected jobs failed, were retried and failed again.
    let (failed, failures) = (2 * OF_KIND, 3 * OF_KIND);
    let (retries, runs) = (OF_KIND, 6 * OF_KIND);
    let (input, output) = (10 * completed, 3 * completed);
    let ends = completed + failures + CANCELED;
    until("in ClickHouse", async || {
        // Each view of an insert is written by itself.
        let sql = "SELECT (SELECT countIf(final) FROM job_runs), (SELECT sum(jobs) FROM failures_by_hour),
            (SELECT sum(completed + failed + canceled) FROM runs_by_group_hour WHERE dimension = 'all')";
        let rows = mesh.sql(sql).await?;
        let expected = format!("{}\t{}\t{}", 3 * ends, 3 * failures, 3 * ends);
        Ok(if rows == expected { Ok(()) } else { Err(rows) })
    })
    .await?;
    for project in PROJECTS {
        let of_handler = receiver.all().iter().filter(|run| run.project == project).count();
        assert_eq!(of_handler as u64, runs, "{project}");
        let stats = mesh.counts(project).await?;
        let names = ["completed", "failed", "canceled", "totalJobs"];
        let all = completed + failed + CANCELED;
        assert_eq!(numbers(&stats, &names), [completed, failed, CANCELED, all], "{stats}");
        let path = format!("/api/queue/metrics?projectId={project}&timeRange=24h");
        let metrics = &get(&mesh, &path).await?["stats"];
        let names =
            ["total", "successful", "failed", "canceled", "totalInputTokens", "totalOutputTokens"];
        let expected = [ends, completed, failures, CANCELED, input, output];
        assert_eq!(numbers(metrics, &names), expected, "{metrics}");
        // From the rollups, and from the runs.
        for bucket in ["hour", "minute"] {
            let path = format!("/api/queue/analytics?projectId={project}&bucket={bucket}");
            let totals = &get(&mesh, &path).await?["analytics"]["totals"][0];
            let names = [
                "jobs",
                "completed",
                "failed",
                "canceled",
                "retries",
                "runs",
                "inputTokens",
                "outputTokens",
            ];
            let expected = [ends, completed, failures, CANCELED, retries, runs, input, output];
            assert_eq!(numbers(totals, &names), expected, "{bucket}: {totals}");
        }
        let sql = format!(
            "SELECT countIf(last = 'completed'), countIf(last = 'failed'), countIf(last = 'canceled'), sum(tokens_in), sum(tokens_out)
            FROM (SELECT job, argMax(outcome, run) AS last, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out
                FROM job_runs WHERE project = '{project}' GROUP BY job)"
        );
        let expected =
            [completed, failed, CANCELED, input, output].map(|n| n.to_string()).join("\t");
        assert_eq!(mesh.sql(&sql).await?, expected);
    }
    let of_all = get(&mesh, "/api/queue/stats").await?["queue"].clone();
    let names = ["completed", "failed", "canceled"];
    assert_eq!(numbers(&of_all, &names), [3 * completed, 3 * failed, 3 * CANCELED]);
    let projects = get(&mesh, "/api/projects").await?;
    for project in projects["projects"].as_array().into_iter().flatten() {
        assert_eq!(numbers(project, &names), [completed, failed, CANCELED], "{project}");
    }
    let groups = get(&mesh, "/api/queue/failures?sort=jobs").await?;
    let found: Vec<Vec<u64>> = groups["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|group| numbers(group, &["jobs", "runs"]))
        .collect();
    assert_eq!(found, [[6 * OF_KIND, 6 * OF_KIND], [3 * OF_KIND, 6 * OF_KIND]], "{groups}");
    Ok(())
}
