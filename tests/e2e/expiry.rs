//! Queued jobs that do not start in time are canceled; running ones continue.

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
