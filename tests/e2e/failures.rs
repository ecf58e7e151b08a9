//! Jobs that fail: tried again with growing waits, as often as they may be, and kept with their
//! error; and processors that stop.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

async fn enqueue(mesh: &Mesh, batch: &str, what: &str) -> anyhow::Result<String> {
    let body = json!({ "projectId": "p", "batchId": batch, "data": { "do": what } });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    Ok(answer["jobId"].as_str().unwrap().to_owned())
}

async fn until_job(
    mesh: &Mesh,
    id: &str,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    until(what, async || {
        let job = mesh.job(id).await?;
        Ok(if holds(&job) { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    mesh.job(id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_tried_again_with_growing_waits_and_kept_with_its_error() -> anyhow::Result<()>
{
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_TIME_LIMIT_S", "3")])?;
    let fails = enqueue(&mesh, "fails", "fail").await?;
    let busy = enqueue(&mesh, "busy", "busy").await?;
    let nonsense = enqueue(&mesh, "nonsense", "nonsense").await?;
    let endless = enqueue(&mesh, "endless", "wait").await?;
    let ended = |job: &Value| job["status"] != "queued" && job["status"] != "processing";
    let waits = |job: &Value| job["status"] == "queued" && job["error"].is_string();
    let job = until_job(&mesh, &busy, "waiting", waits).await?;
    assert!(job["runAt"].is_string() && job["attempts"] == 0, "no attempt is used: {job}");
    let job = until_job(&mesh, &fails, "failed", ended).await?;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("failed"), &json!(3)));
    let error = job["error"].as_str().unwrap();
    assert!(error.contains("502") && error.contains("try later"), "{error}");
    let runs = receiver.runs(&fails);
    let attempts: Vec<u64> = runs.iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    // 200 ms and 400 ms, each 20 % to either side.
    let waits: Vec<Duration> = runs.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(waits[0] >= Duration::from_millis(160), "{waits:?}");
    assert!(waits[1] >= Duration::from_millis(320), "{waits:?}");
    let job = until_job(&mesh, &busy, "ended", ended).await?;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("completed"), &json!(1)));
    let runs = receiver.runs(&busy);
    assert!(runs[1].at - runs[0].at >= Duration::from_secs(2), "Retry-After is respected");
    // The work is done, whatever the answer says.
    let job = until_job(&mesh, &nonsense, "ended", ended).await?;
    assert_eq!((&job["status"], &job["result"]), (&json!("completed"), &Value::Null));
    let timed_out = |job: &Value| job["error"].as_str().is_some_and(|e| e.contains("time limit"));
    until_job(&mesh, &endless, "timed out", timed_out).await?;
    mesh.post("/api/queue/cancel", json!({ "projectId": "p" })).await?;
    // Three runs of the first, and each a row of its own; one row that ended the job.
    until("in ClickHouse", async || {
        let query = format!("SELECT count(), countIf(final) FROM job_runs WHERE job = '{fails}'");
        let rows = mesh.sql(&query).await?;
        Ok(if rows == "3\t1" { Ok(()) } else { Err(rows) })
    })
    .await
}

/// Hazard 15: a processor that stops hands back what it cannot finish, and the attempt with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_stops_hands_its_jobs_back_with_their_attempts() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_GRACE_S", "1")])?;
    let job = enqueue(&mesh, "b", "wait").await?;
    receiver.until_running(1).await?;
    mesh.signal("processor", libc::SIGTERM)?;
    until_job(&mesh, &job, "running again", |_| receiver.runs(&job).len() == 2).await?;
    receiver.open();
    let ended = until_job(&mesh, &job, "completed", |job| job["status"] == "completed").await?;
    assert_eq!(ended["attempts"], 1, "{ended}");
    let runs: Vec<(u64, u64)> =
        receiver.runs(&job).iter().map(|run| (run.run, run.attempt)).collect();
    assert_eq!(runs, [(1, 1), (2, 1)]);
    Ok(())
}

/// A processor that stops lets what runs come to its end within the grace.
#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_stops_finishes_what_runs() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_GRACE_S", "60")])?;
    let job = enqueue(&mesh, "b", "wait").await?;
    receiver.until_running(1).await?;
    let processor = mesh.child("processor")?;
    mesh.signal("processor", libc::SIGTERM)?;
    until("draining", async || {
        let (_, answer) = mesh.get("/api/queue/stats").await?;
        let worker = &answer["worker"];
        Ok(if worker["maxConcurrency"] == 0 { Ok(()) } else { Err(worker.to_string()) })
    })
    .await?;
    // It has free slots, and takes no new work: that waits for the one that comes after it.
    let next = enqueue(&mesh, "c", "done").await?;
    receiver.open();
    let mut workers = Vec::new();
    for job in [&job, &next] {
        let ended = until_job(&mesh, job, "completed", |job| job["status"] == "completed").await?;
        assert_eq!(ended["attempts"], 1, "{ended}");
        assert_eq!(receiver.runs(job).len(), 1);
        workers.push(ended["worker"].clone());
    }
    assert_ne!(workers[0], workers[1], "the stopping one took new work");
    assert!(!crate::mesh::is_alive(processor));
    Ok(())
}

/// Hazard 15: the lease of a run that takes longer than the broker waits is extended: it is
/// handed out once.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_is_run_once() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_PROCESSORS", "2")])?;
    let data = json!({ "do": "work", "ms": 14_000 });
    let body = json!({ "projectId": "p", "batchId": "long", "data": data });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    let id = answer["jobId"].as_str().unwrap();
    let ended = until_job(&mesh, id, "completed", |job| job["status"] == "completed").await?;
    assert_eq!(ended["attempts"], 1, "{ended}");
    assert_eq!(receiver.runs(id).len(), 1);
    Ok(())
}

/// Hazard 9: cancelled work that waits in a stream behind a busy slot is never run.
#[tokio::test(flavor = "multi_thread")]
async fn canceled_work_behind_a_busy_slot_is_never_run() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_CONCURRENCY", "1")])?;
    let first = enqueue(&mesh, "first", "wait").await?;
    receiver.until_running(1).await?;
    let waiting = enqueue(&mesh, "waiting", "done").await?;
    let cancel = json!({ "projectId": "p", "batchIds": ["waiting"] });
    assert_eq!(mesh.post("/api/queue/cancel", cancel).await?["canceledCount"], 1);
    let last = enqueue(&mesh, "last", "done").await?;
    receiver.open();
    for job in [&first, &last] {
        until_job(&mesh, job, "completed", |job| job["status"] == "completed").await?;
    }
    assert!(receiver.runs(&waiting).is_empty(), "the last one came behind it, and it did not run");
    Ok(())
}

/// What a clock that was set back looks like: the events are of a time that has not come yet.
#[tokio::test(flavor = "multi_thread")]
async fn retries_and_schedules_go_on_where_the_clock_was_set_back() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let broker = nats::Broker::connect(&mesh.nats_url()?, "test").await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let two_days_ahead = now.as_millis() + 2 * 24 * 3_600_000;
    let batch = format!(r#"{{"at":{two_days_ahead},"events":[]}}"#);
    until("appended", async || {
        let last = broker.last_sequence(nats::names::EVENTS).await?;
        let appended = broker.append(last, 0, batch.clone().into()).await?;
        let is_in = matches!(appended, nats::append::Appended::At(_));
        Ok(if is_in { Ok(()) } else { Err("a state service was first".to_owned()) })
    })
    .await?;
    let schedule =
        json!({ "cron": "* * * * *", "batchId": "each-minute", "data": { "do": "nothing" } });
    let (status, answer) =
        mesh.put_raw("/api/projects/p/schedules/s", schedule.to_string()).await?;
    assert_eq!(status, 200, "{answer}");
    let fails = enqueue(&mesh, "fails", "fail").await?;
    let job = until_job(&mesh, &fails, "failed", |job| job["status"] == "failed").await?;
    assert_eq!(job["attempts"], 3, "{job}");
    until("fired", async || {
        let (_, answer) = mesh.get("/api/projects/p/schedules/s").await?;
        let fired = answer["schedule"]["lastAt"].is_string();
        Ok(if fired { Ok(()) } else { Err(answer.to_string()) })
    })
    .await
}
