//! The answers of each endpoint, field by field.

use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

/// Asserts that an object has exactly these fields.
fn assert_fields(what: &Value, fields: &[&str]) {
    let mut expected: Vec<&str> = fields.to_vec();
    expected.sort_unstable();
    let mut found: Vec<&str> = what.as_object().unwrap().keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, expected, "{what}");
}

fn assert_time(what: &Value) {
    let text = what.as_str().unwrap_or_default();
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{what}");
}

async fn until_status(mesh: &Mesh, job: &Value, status: &str) -> anyhow::Result<Value> {
    let id = job.as_str().unwrap();
    until(status, async || {
        let job = mesh.job(id).await?;
        Ok(if job["status"] == status { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    mesh.job(id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_answers_field_by_field() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    enqueue_and_status(&mesh).await?;
    scheduled(&mesh).await?;
    redo(&mesh).await?;
    failed_and_retried(&mesh).await?;
    canceled(&mesh, &receiver).await?;
    stats_of_an_unknown_project(&mesh).await?;
    metrics(&mesh).await?;
    repeats(&mesh).await
}

/// Every field of metrics, for each range.
async fn metrics(mesh: &Mesh) -> anyhow::Result<()> {
    let body = json!({ "projectId": "sums", "batchIds": ["a", "b"],
        "data": { "a": { "do": "done" }, "b": { "do": "reject" } } });
    mesh.post("/api/queue/enqueue", body).await?;
    until("both in ClickHouse", async || {
        let (_, answer) = mesh.get("/api/queue/metrics?projectId=sums").await?;
        Ok(if answer["stats"]["total"] == 2 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    for (range, hours, days) in [("24h", 24, None), ("7d", 168, None), ("30d", 720, Some(30))] {
        let path = format!("/api/queue/metrics?projectId=sums&timeRange={range}");
        let stats = mesh.get(&path).await?.1["stats"].clone();
        assert_eq!(stats["hourlyBreakdown"].as_array().map(Vec::len), Some(hours), "{range}");
        // Thirty times 24 hours touch 31 days, but at midnight.
        let shown = stats["dailyBreakdown"].as_array().map(Vec::len);
        assert!(shown == days || (days.is_some() && shown == Some(31)), "{range}: {shown:?}");
    }
    let path = "/api/queue/metrics?projectId=sums&timeRange=all";
    let stats = mesh.get(path).await?.1["stats"].clone();
    assert_fields(
        &stats,
        &[
            "timeRange",
            "asOf",
            "total",
            "successful",
            "failed",
            "canceled",
            "successRate",
            "avgDuration",
            "minDuration",
            "maxDuration",
            "p50Duration",
            "p95Duration",
            "p99Duration",
            "avgWait",
            "totalTokens",
            "totalInputTokens",
            "totalOutputTokens",
            "byType",
            "byModel",
            "hourlyBreakdown",
            "dailyBreakdown",
        ],
    );
    assert_eq!((&stats["timeRange"], &stats["successRate"]), (&json!("all"), &json!(0.5)));
    for (field, value) in [("total", 2), ("successful", 1), ("failed", 1), ("canceled", 0)] {
        assert_eq!(stats[field], value, "{field}");
    }
    assert_eq!((&stats["totalInputTokens"], &stats["totalOutputTokens"]), (&json!(10), &json!(3)));
    assert_eq!(stats["totalTokens"], 13);
    assert_eq!(stats["byType"]["process_batch"]["count"], 2);
    assert_eq!(stats["byModel"]["small"]["totalTokens"], 13);
    assert_time(&stats["asOf"]);
    let of = |field: &str| stats[field].as_f64().unwrap_or(-1.0);
    assert!(of("minDuration") >= 0.0 && of("minDuration") <= of("avgDuration"), "{stats}");
    assert!(of("avgDuration") <= of("maxDuration") && of("avgWait") >= 0.0, "{stats}");
    assert!(of("p50Duration") <= of("p95Duration") && of("p95Duration") <= of("p99Duration"));
    Ok(())
}

/// Hazard 11: a repeat of any request with its key changes nothing more, and gets the same answer.
async fn repeats(mesh: &Mesh) -> anyhow::Result<()> {
    let failing = json!({ "projectId": "again", "batchId": "b", "data": { "do": "reject" } });
    let job = mesh.post("/api/queue/enqueue", failing).await?["jobId"].clone();
    until_status(mesh, &job, "failed").await?;
    let redo = json!({ "projectId": "again", "batchId": "r", "rowIndex": 0,
        "redoColumnIds": ["c"], "croppedImageIds": { "c": "i" } });
    let retry = json!({ "projectId": "again", "jobId": job });
    let cancel = json!({ "projectId": "again" });
    for (verb, body) in [("redo", redo), ("retry", retry), ("cancel", cancel)] {
        let path = format!("/api/queue/{verb}");
        let (status, first) = mesh.post_keyed(&path, body.to_string(), Some("k")).await?;
        assert_eq!(status, 200, "{verb}: {first}");
        let total = mesh.counts("again").await?["totalJobs"].clone();
        let (status, again) = mesh.post_keyed(&path, body.to_string(), Some("k")).await?;
        assert_eq!((status, &again), (200, &first), "{verb}");
        assert_eq!(mesh.counts("again").await?["totalJobs"], total, "{verb}");
        let other = json!({ "projectId": "again", "x": 1 }).to_string();
        let (status, _) = mesh.post_keyed(&path, other, Some("k")).await?;
        assert_eq!(status, 400, "{verb}");
    }
    Ok(())
}

async fn enqueue_and_status(mesh: &Mesh) -> anyhow::Result<()> {
    let path = "/api/queue/enqueue";
    let data = json!({ "do": "done", "n": 1 });
    let body = json!({
        "projectId": "fields", "batchId": "one", "priority": 3, "data": data,
        "maxAttempts": 5, "type": "process_batch",
    });
    let one = mesh.post(path, body).await?;
    assert_fields(&one, &["success", "jobId", "canceledCount", "message"]);
    assert_eq!((&one["success"], &one["canceledCount"]), (&json!(true), &json!(0)));
    let job = until_status(mesh, &one["jobId"], "completed").await?;
    assert_fields(
        &job,
        &[
            "id",
            "projectId",
            "batchId",
            "type",
            "status",
            "priority",
            "data",
            "attempts",
            "maxAttempts",
            "createdAt",
            "startedAt",
            "completedAt",
            "result",
            "tokens",
            "model",
            "worker",
        ],
    );
    assert_eq!(job["id"], one["jobId"]);
    assert_eq!((&job["projectId"], &job["batchId"]), (&json!("fields"), &json!("one")));
    assert_eq!((&job["type"], &job["priority"]), (&json!("process_batch"), &json!(3)));
    assert_eq!((&job["attempts"], &job["maxAttempts"]), (&json!(1), &json!(5)));
    assert_eq!((&job["data"], &job["result"]), (&data, &json!({ "echo": data })));
    assert_eq!(job["tokens"], json!({ "input": 10, "output": 3 }));
    assert_eq!(job["model"], "small");
    for time in ["createdAt", "startedAt", "completedAt"] {
        assert_time(&job[time]);
    }
    // A list answers with a list, in its order; a batch named twice is one job.
    let body = json!({ "projectId": "fields", "batchIds": ["x", "y", "x"] });
    let many = mesh.post(path, body).await?;
    assert_fields(&many, &["success", "jobIds", "canceledCount", "message"]);
    let ids = many["jobIds"].as_array().unwrap();
    assert_eq!(ids.len(), 2);
    for (id, batch) in ids.iter().zip(["x", "y"]) {
        assert_eq!(mesh.job(id.as_str().unwrap()).await?["batchId"], batch);
    }
    // Both: jobId is batchId's, jobIds has them all.
    let body = json!({ "projectId": "fields", "batchId": "z", "batchIds": ["x", "z"] });
    let both = mesh.post(path, body).await?;
    assert_fields(&both, &["success", "jobId", "jobIds", "canceledCount", "message"]);
    assert_eq!(both["canceledCount"], 1);
    assert_eq!(both["jobIds"].as_array().unwrap().len(), 2);
    assert_eq!(mesh.job(both["jobId"].as_str().unwrap()).await?["batchId"], "z");
    Ok(())
}

async fn scheduled(mesh: &Mesh) -> anyhow::Result<()> {
    let later = "2999-01-02T03:04:05.678Z";
    let body = json!({ "projectId": "later", "batchId": "b", "runAt": later });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    let job = mesh.job(answer["jobId"].as_str().unwrap()).await?;
    assert_fields(
        &job,
        &[
            "id",
            "projectId",
            "batchId",
            "type",
            "status",
            "priority",
            "data",
            "attempts",
            "maxAttempts",
            "createdAt",
            "runAt",
        ],
    );
    assert_eq!((&job["status"], &job["runAt"]), (&json!("queued"), &json!(later)));
    assert_eq!((&job["priority"], &job["maxAttempts"]), (&json!(10), &json!(3)));
    assert_eq!(job["data"], json!({}));
    let counts = mesh.counts("later").await?;
    assert_eq!((&counts["queued"], &counts["scheduled"]), (&json!(1), &json!(1)));
    let canceled = mesh.post("/api/queue/cancel", json!({ "projectId": "later" })).await?;
    assert_eq!(canceled["canceledCount"], 1);
    let counts = mesh.counts("later").await?;
    assert_eq!((&counts["queued"], &counts["scheduled"]), (&json!(0), &json!(0)));
    Ok(())
}

async fn redo(mesh: &Mesh) -> anyhow::Result<()> {
    let fields = json!({
        "rowIndex": 7, "redoColumnIds": ["c1", "c2"], "croppedImageIds": { "c1": "i1" },
        "sourceImageIds": { "c1": "s1" },
    });
    let mut body = fields.clone();
    body["projectId"] = json!("redo");
    body["batchId"] = json!("b");
    let first = mesh.post("/api/queue/redo", body.clone()).await?;
    assert_fields(&first, &["success", "jobId", "message"]);
    let job = mesh.job(first["jobId"].as_str().unwrap()).await?;
    assert_eq!((&job["type"], &job["priority"]), (&json!("process_redo"), &json!(5)));
    assert_eq!((&job["projectId"], &job["batchId"]), (&json!("redo"), &json!("b")));
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(&job["data"][name], value, "{name} arrives in data");
    }
    // A redo supersedes nothing.
    let second = mesh.post("/api/queue/redo", body).await?;
    assert_ne!(first["jobId"], second["jobId"]);
    let counts = mesh.counts("redo").await?;
    assert_eq!((&counts["canceled"], &counts["totalJobs"]), (&json!(0), &json!(2)));
    let canceled = mesh.post("/api/queue/cancel", json!({ "projectId": "redo" })).await?;
    assert_fields(&canceled, &["success", "canceledCount", "batchesReset", "message"]);
    assert_eq!((&canceled["canceledCount"], &canceled["batchesReset"]), (&json!(2), &json!(1)));
    Ok(())
}

async fn failed_and_retried(mesh: &Mesh) -> anyhow::Result<()> {
    let ids = ["a", "b", "c"].map(str::to_owned);
    let data: serde_json::Map<String, Value> =
        ids.iter().map(|id| (id.clone(), json!({ "do": "reject" }))).collect();
    let body = json!({ "projectId": "fails", "batchIds": ids, "data": data });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    let jobs = answer["jobIds"].as_array().unwrap();
    for job in jobs {
        let job = until_status(mesh, job, "failed").await?;
        assert_eq!(job["attempts"], 1, "a rejected job is not tried again: {job}");
        let error = job["error"].as_str().unwrap();
        assert!(error.contains("422") && error.contains("no such page"), "{error}");
        assert_time(&job["completedAt"]);
    }
    assert_eq!(mesh.counts("fails").await?["failed"], 3);
    let one = json!({ "projectId": "fails", "jobId": jobs[0] });
    let retried = mesh.post("/api/queue/retry", one.clone()).await?;
    assert_fields(&retried, &["success", "retriedCount", "jobIds", "message"]);
    assert_eq!((&retried["retriedCount"], &retried["jobIds"]), (&json!(1), &json!([jobs[0]])));
    let again = until_status(mesh, &jobs[0], "failed").await?;
    assert_eq!(again["attempts"], 1, "a manual retry starts attempts at 0: {again}");
    let all = json!({ "projectId": "fails", "retryAll": true });
    let retried = mesh.post("/api/queue/retry", all).await?;
    assert_eq!(retried["retriedCount"], 3, "{retried}");
    for job in jobs {
        until_status(mesh, job, "failed").await?;
    }
    let counts = mesh.counts("fails").await?;
    assert_eq!((&counts["failed"], &counts["totalJobs"]), (&json!(3), &json!(3)));
    // What is neither failed nor canceled, not this project's, or superseded is not retried.
    let body = json!({ "projectId": "fails", "batchId": "a", "runAt": "2999-01-01T00:00:00Z" });
    let newer = mesh.post("/api/queue/enqueue", body).await?;
    let live = json!({ "projectId": "fails", "jobId": newer["jobId"] });
    let foreign = json!({ "projectId": "other", "jobId": jobs[1] });
    for (body, status, code) in [
        (live, 409, "job_not_retryable"),
        (foreign, 404, "job_not_found"),
        (one, 409, "superseded"),
    ] {
        let (found, answer) = mesh.post_raw("/api/queue/retry", body.to_string()).await?;
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{answer}");
        assert_fields(&answer, &["success", "error", "code"]);
    }
    Ok(())
}

async fn canceled(mesh: &Mesh, receiver: &Receiver) -> anyhow::Result<()> {
    mesh.post("/api/queue/cancel", json!({ "projectId": "fields" })).await?;
    receiver.until_running(0).await?;
    let body = json!({ "projectId": "stops", "batchIds": ["a", "b", "c"] });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    let jobs = answer["jobIds"].as_array().unwrap();
    receiver.until_running(3).await?;
    let some = json!({ "projectId": "stops", "batchIds": ["a", "nothing"] });
    let canceled = mesh.post("/api/queue/cancel", some).await?;
    assert_eq!((&canceled["canceledCount"], &canceled["batchesReset"]), (&json!(1), &json!(1)));
    let job = mesh.job(jobs[0].as_str().unwrap()).await?;
    assert_eq!(job["status"], "canceled");
    assert!(job["error"].as_str().unwrap().contains("request"), "{job}");
    receiver.until_running(2).await?;
    let stats = mesh.get("/api/queue/stats?projectId=stops").await?.1;
    assert_fields(&stats, &["success", "queue", "worker"]);
    assert_fields(
        &stats["queue"],
        &[
            "queued",
            "processing",
            "completed",
            "failed",
            "canceled",
            "scheduled",
            "totalJobs",
            "byClass",
        ],
    );
    assert_fields(
        &stats["worker"],
        &["isRunning", "processors", "activeJobs", "requestsPerMinute", "maxConcurrency"],
    );
    assert_eq!(stats["queue"]["canceled"], 1);
    assert_eq!(
        (&stats["worker"]["isRunning"], &stats["worker"]["processors"]),
        (&json!(true), &json!(1))
    );
    until("two processing", async || {
        let counts = mesh.counts("stops").await?;
        Ok(if counts["processing"] == 2 { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    // Nothing is active the second time: that is no error.
    let rest = json!({ "projectId": "stops" });
    assert_eq!(mesh.post("/api/queue/cancel", rest.clone()).await?["canceledCount"], 2);
    assert_eq!(mesh.post("/api/queue/cancel", rest).await?["canceledCount"], 0);
    // A canceled job may be retried.
    let one = json!({ "projectId": "stops", "jobId": jobs[2] });
    assert_eq!(mesh.post("/api/queue/retry", one).await?["retriedCount"], 1);
    receiver.open();
    until_status(mesh, &jobs[2], "completed").await?;
    Ok(())
}

async fn stats_of_an_unknown_project(mesh: &Mesh) -> anyhow::Result<()> {
    let counts = mesh.counts("nobody").await?;
    assert_eq!(counts["totalJobs"], 0);
    let (status, metrics) = mesh.get("/api/queue/metrics?projectId=nobody").await?;
    assert_eq!(status, 200);
    let stats = &metrics["stats"];
    assert_eq!((&stats["total"], &stats["totalTokens"]), (&json!(0), &json!(0)));
    assert_eq!(stats["hourlyBreakdown"].as_array().unwrap().len(), 24);
    assert_fields(
        &stats["hourlyBreakdown"][0],
        &["hour", "count", "successful", "failed", "avgDuration", "totalTokens"],
    );
    Ok(())
}
