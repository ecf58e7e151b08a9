//! Webhooks, verified by a public client of the specification.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::{
    clients::Client,
    mesh::{Mesh, free_address, until},
};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const JOBS: usize = 200;

/// A mesh that may tell this machine, and a project whose receiver is at this port.
async fn told(port: u16) -> anyhow::Result<Mesh> {
    let mesh = Mesh::start_with(&[("JOBMESH_WEBHOOK_PRIVATE", "true")])?;
    let retry = json!({ "baseMs": 200, "factor": 1.0 });
    let url = format!("http://127.0.0.1:{port}/hook");
    let webhook = json!({ "url": url, "secret": SECRET, "retry": retry, "maxAttempts": 100 });
    let project = mesh.set("p", json!({ "webhook": webhook })).await?;
    assert_eq!(project["webhook"]["url"], url);
    assert_eq!(project["webhook"]["deliveries"]["pending"], 0);
    assert!(!project.to_string().contains("whsec_"), "{project}");
    Ok(mesh)
}

async fn deliveries(mesh: &Mesh, project: &str) -> anyhow::Result<Value> {
    let answer = mesh.get(&format!("/api/projects/{project}")).await?.1;
    Ok(answer["project"]["webhook"]["deliveries"].clone())
}

async fn until_delivered(mesh: &Mesh, project: &str, count: usize) -> anyhow::Result<()> {
    until(&format!("{count} delivered"), async || {
        let now = deliveries(mesh, project).await?;
        let all = now["delivered"] == count && now["pending"] == 0;
        Ok(if all { Ok(()) } else { Err(now.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_signed_and_survive_kills_while_the_receiver_is_away() -> anyhow::Result<()> {
    let port = free_address()?.port();
    let mesh = told(port).await?;
    let mut events = mesh.follow("/api/queue/events").await?;
    let batches = mesh.enqueue("p", JOBS).await?;
    let body = json!({ "projectId": "p", "batchId": "later", "runAt": "2999-01-01T00:00:00Z" });
    mesh.post("/api/queue/enqueue", body).await?;
    mesh.post("/api/queue/cancel", json!({ "projectId": "p", "batchIds": ["later"] })).await?;
    until("refused attempts shown", async || {
        let now = deliveries(&mesh, "p").await?;
        let shown = now["pending"] == JOBS + 1
            && now["lastError"].as_str().is_some_and(|error| error.contains("could not be asked"));
        Ok(if shown { Ok(()) } else { Err(now.to_string()) })
    })
    .await?;
    for service in ["state", "processor", "nats-server"] {
        mesh.signal(service, libc::SIGKILL)?;
    }
    let receiver = Client::node("webhook.mjs", &[&port.to_string(), SECRET])?;
    until_delivered(&mesh, "p", JOBS + 1).await?;
    let lines = receiver.lines();
    let mut told: HashMap<&str, usize> = HashMap::new();
    for line in &lines {
        *told.entry(line).or_default() += 1;
    }
    assert_eq!(told.remove("listening"), Some(1));
    assert!(told.remove("job.canceled later").is_some(), "{lines:?}");
    assert_eq!(told.len(), JOBS, "{} batches", batches.len());
    assert!(told.keys().all(|line| line.starts_with("job.completed ")), "{lines:?}");
    // Deliveries are not visible as jobs.
    let counts = mesh.counts("p").await?;
    assert_eq!(counts["totalJobs"], JOBS + 1);
    let all = mesh.get("/api/queue/stats").await?.1;
    assert_eq!(
        (&all["queue"]["totalJobs"], &all["queue"]["scheduled"]),
        (&json!(JOBS + 1), &json!(0))
    );
    let rows = format!("{}", JOBS + 1);
    until("rows of jobs alone", async || {
        let now = mesh.sql("SELECT uniqExact(job) FROM job_runs").await?;
        Ok(if now == rows { Ok(()) } else { Err(now) })
    })
    .await?;
    assert_eq!(mesh.sql("SELECT countIf(type = 'webhook') FROM job_runs").await?, "0");
    while let Ok(Ok(Some(chunk))) =
        tokio::time::timeout(std::time::Duration::from_millis(200), events.chunk()).await
    {
        assert!(!String::from_utf8_lossy(&chunk).contains("webhook"));
    }
    // A signature with another secret is invalid.
    let stranger = json!({ "webhook": {
        "url": format!("http://127.0.0.1:{port}/"), "maxAttempts": 1,
        "secret": "whsec_c3RyYW5nZXItMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY=",
    } });
    mesh.set("other", stranger).await?;
    mesh.enqueue("other", 1).await?;
    until("given up", async || {
        let now = deliveries(&mesh, "other").await?;
        Ok(if now["failed"] == 1 { Ok(()) } else { Err(now.to_string()) })
    })
    .await?;
    receiver.says("refused No matching signature found").await
}

/// One receiver never answers, and many ends wait for it: neither jobs nor other receivers do.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_holds_up_nobody() -> anyhow::Result<()> {
    let port = free_address()?.port();
    let mesh = told(port).await?;
    let receiver = Client::node("webhook.mjs", &[&port.to_string(), SECRET])?;
    receiver.says("listening").await?;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", silent.local_addr()?);
    mesh.set("slow", json!({ "webhook": { "url": url, "secret": SECRET } })).await?;
    mesh.enqueue("slow", JOBS).await?;
    until("all of them wait", async || {
        let now = deliveries(&mesh, "slow").await?;
        Ok(if now["pending"] == JOBS { Ok(()) } else { Err(now.to_string()) })
    })
    .await?;
    mesh.enqueue("p", JOBS).await?;
    until_delivered(&mesh, "p", JOBS).await?;
    assert_eq!(deliveries(&mesh, "slow").await?["delivered"], 0);
    // Removing the webhook gives up its pending deliveries.
    mesh.set("slow", json!({ "webhook": null })).await?;
    assert!(deliveries(&mesh, "slow").await?.is_null());
    Ok(())
}

/// A receiver that knows another secret refuses deliveries. They are listed with their errors, and made again once both
/// secrets are set.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_that_were_given_up_are_listed_and_made_again() -> anyhow::Result<()> {
    let port = free_address()?.port();
    let mesh = told(port).await?;
    let receiver = Client::node("webhook.mjs", &[&port.to_string(), SECRET])?;
    receiver.says("listening").await?;
    let url = format!("http://127.0.0.1:{port}/");
    let new = "whsec_c3RyYW5nZXItMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY=";
    let webhook = json!({ "url": url, "secret": new, "maxAttempts": 1 });
    mesh.set("other", json!({ "webhook": webhook })).await?;
    mesh.enqueue("other", 3).await?;
    let path = "/api/projects/other/deliveries";
    let list = async |query: &str| -> anyhow::Result<Value> {
        let (status, answer) = mesh.get(&format!("{path}{query}")).await?;
        anyhow::ensure!(status == 200, "{answer}");
        Ok(answer)
    };
    until("given up", async || {
        let failed = list("").await?["deliveries"].as_array().map(Vec::len);
        Ok(if failed == Some(3) { Ok(()) } else { Err(format!("{failed:?}")) })
    })
    .await?;
    let page = list("?limit=2").await?;
    assert_eq!(
        (page["deliveries"].as_array().map(Vec::len), &page["nextCursor"]),
        (Some(2), &json!("2"))
    );
    let delivery = &page["deliveries"][0];
    assert_eq!(
        (&delivery["status"], &delivery["type"]),
        (&json!("failed"), &json!("job.completed"))
    );
    assert!(
        delivery["error"].as_str().is_some_and(|error| error.starts_with("answered")),
        "{delivery}"
    );
    assert!(delivery["lastAttemptAt"].is_string() && delivery["attempts"] == 1, "{delivery}");
    let job = mesh.job(delivery["jobId"].as_str().expect("its job")).await?;
    assert_eq!(job["batchId"], delivery["batchId"]);
    assert_eq!(list("?status=pending").await?["deliveries"], json!([]));

    // One of them, then the others.
    let both = json!({ "url": url, "secret": new, "previousSecret": SECRET, "maxAttempts": 1 });
    let project = mesh.set("other", json!({ "webhook": both })).await?;
    assert!(!project.to_string().contains("whsec_"), "{project}");
    let retry = format!("{path}/retry");
    let one = json!({ "deliveryIds": [delivery["deliveryId"]] });
    assert_eq!(mesh.post(&retry, one).await?["retriedCount"], 1);
    until_delivered(&mesh, "other", 1).await?;
    for _ in 0..2 {
        let (_, answer) = mesh.post_keyed(&retry, "{}".to_owned(), Some("key")).await?;
        assert_eq!(answer["retriedCount"], 2, "a repeat gets the first answer: {answer}");
    }
    until_delivered(&mesh, "other", 3).await?;
    assert_eq!(deliveries(&mesh, "other").await?["failed"], 0);
    assert_eq!(list("").await?["deliveries"], json!([]));
    assert_eq!(mesh.post(&retry, json!({})).await?["retriedCount"], 0);

    // Pending deliveries are listed, too.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", silent.local_addr()?);
    mesh.set("slow", json!({ "webhook": { "url": url, "secret": SECRET } })).await?;
    mesh.enqueue("slow", 1).await?;
    until("pending", async || {
        let (_, answer) = mesh.get("/api/projects/slow/deliveries?status=pending").await?;
        let is_listed = answer["deliveries"][0]["status"] == "pending";
        Ok(if is_listed { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    for (body, field) in [
        (json!({ "deliveryIds": [] }), "deliveryIds"),
        (json!({ "deliveryIds": ["x"] }), "deliveryIds[0]"),
        (json!({ "ids": [] }), "ids"),
    ] {
        let (status, answer) = mesh.post_keyed(&retry, body.to_string(), None).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(field), "{answer}");
    }
    Ok(())
}
