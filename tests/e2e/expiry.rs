//! Queued jobs that do not start in time are canceled; running ones continue.

use job::PriorityClass;
use nats::names;
use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

async fn enqueue(mesh: &Mesh, batch: &str, request: Value) -> anyhow::Result<String> {
    let mut body = json!({ "projectId": "p", "batchId": batch });
    for (field, value) in request.as_object().expect("an object") {
        body[field] = value.clone();
    }
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    Ok(answer["jobId"].as_str().expect("its id").to_owned())
}

async fn until_status(mesh: &Mesh, job: &str, status: &str) -> anyhow::Result<Value> {
    let mut found = Value::Null;
    until(status, async || {
        found = mesh.job(job).await?;
        Ok(if found["status"] == status { Ok(()) } else { Err(found.to_string()) })
    })
    .await?;
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_expires_unless_it_has_started() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    mesh.set("p", json!({ "maxConcurrency": 1, "expiresIn": 3_600 })).await?;
    let running =
        enqueue(&mesh, "runs", json!({ "expiresIn": 1, "data": { "do": "wait" } })).await?;
    until_status(&mesh, &running, "processing").await?;
    let waits = enqueue(&mesh, "waits", json!({ "expiresIn": 1 })).await?;
    let stays = enqueue(&mesh, "stays", json!({})).await?;
    let expired = until_status(&mesh, &waits, "canceled").await?;
    let error = expired["error"].as_str().expect("why");
    let at = expired["expiresAt"].as_str().expect("when");
    assert_eq!(error, format!("expired: run 1 had not started by {at}"));
    assert_eq!(mesh.job(&running).await?["status"], "processing");
    let job = mesh.job(&stays).await?;
    assert!(job["status"] == "queued" && job["expiresAt"].is_string(), "{job}");
    // By hand: the queued one, and not the one that runs.
    let expire = json!({ "action": "expire", "filter": { "projectId": "p" } });
    let (_, counted) = mesh
        .post_keyed(
            "/api/queue/operations",
            {
                let mut dry_run = expire.clone();
                dry_run["dryRun"] = true.into();
                dry_run.to_string()
            },
            None,
        )
        .await?;
    assert_eq!(counted["dryRun"]["jobs"], 1, "{counted}");
    let answer = mesh.post("/api/queue/operations", expire).await?;
    let job = until_status(&mesh, &stays, "canceled").await?;
    let operation = &answer["operation"]["operationId"];
    let by = format!("expired by operation {}", operation.as_str().expect("its id"));
    assert_eq!(job["error"], by);
    assert_eq!(mesh.job(&running).await?["status"], "processing");
    for (field, status, code) in [
        (json!({ "expiresIn": 0 }), 400, "invalid_field"),
        (json!({ "expiresIn": "1h" }), 400, "invalid_field"),
    ] {
        let mut body = json!({ "projectId": "p", "batchId": "b" });
        body["expiresIn"] = field["expiresIn"].clone();
        let (found, answer) = mesh.post_keyed("/api/queue/enqueue", body.to_string(), None).await?;
        assert_eq!((found, answer["code"].as_str()), (status, Some(code)), "{answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ran_while_state_was_away_does_not_expire() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let broker = nats::Broker::connect(&mesh.nats_url()?, "test").await?;
    mesh.signal("processor", libc::SIGSTOP)?;
    let request = json!({ "expiresIn": 5, "data": { "do": "wait" } });
    let job = enqueue(&mesh, "b", request).await?;
    until("handed out", async || {
        let work = broker.list_work(PriorityClass::Normal).await?;
        Ok(if work.iter().any(|(id, _)| id.to_string() == job) {
            Ok(())
        } else {
            Err("not yet".into())
        })
    })
    .await?;
    let expires_at: jiff::Timestamp =
        mesh.job(&job).await?["expiresAt"].as_str().expect("when").parse()?;
    mesh.signal("state", libc::SIGSTOP)?;
    let before = broker.last_sequence(names::COMMANDS).await?;
    mesh.signal("processor", libc::SIGCONT)?;
    receiver.until_running(1).await?;
    receiver.open();
    // Its start and its outcome.
    until("in COMMANDS", async || {
        let last = broker.last_sequence(names::COMMANDS).await?;
        Ok(if last >= before + 2 { Ok(()) } else { Err(format!("{before} to {last}")) })
    })
    .await?;
    assert!(jiff::Timestamp::now() < expires_at, "the machine is too slow for this test");
    until("expired", async || {
        Ok(if jiff::Timestamp::now() > expires_at { Ok(()) } else { Err(expires_at.to_string()) })
    })
    .await?;
    mesh.signal("state", libc::SIGCONT)?;
    until_status(&mesh, &job, "completed").await?;
    Ok(())
}
