//! Reading jobs: lists, batches, history, and waiting for an end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

/// All pages of a list.
async fn pages(mesh: &Mesh, query: &str) -> anyhow::Result<Vec<Value>> {
    let mut jobs = Vec::new();
    let mut cursor = String::new();
    for _ in 0..1_000 {
        let (status, page) = mesh.get(&format!("/api/queue/jobs?{query}{cursor}")).await?;
        anyhow::ensure!(status == 200, "{query}{cursor}: {page}");
        jobs.extend(page["jobs"].as_array().unwrap().iter().cloned());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(jobs),
        }
    }
    anyhow::bail!("the list of {query} has no end")
}

fn ids(jobs: &[Value]) -> Vec<String> {
    jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_each_job_once_live_or_ended_page_by_page() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let batches: Vec<String> = (0..25).map(|n| format!("b{n}")).collect();
    let data: serde_json::Map<String, Value> = batches
        .iter()
        .enumerate()
        .map(|(n, b)| (b.clone(), json!({ "do": if n % 5 == 0 { "reject" } else { "done" } })))
        .collect();
    let body = json!({ "projectId": "p", "batchIds": batches, "data": data });
    mesh.post("/api/queue/enqueue", body).await?;
    until("ended", async || {
        let counts = mesh.counts("p").await?;
        let ended = (&counts["completed"], &counts["failed"]) == (&json!(20), &json!(5));
        Ok(if ended { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    // Read-your-writes: a client that has seen the ends of jobs finds them, on the first page if
    // none is active.
    let first = mesh.get("/api/queue/jobs?projectId=p&limit=7").await?.1;
    assert_eq!(first["jobs"].as_array().map(Vec::len), Some(7), "{first}");
    assert_eq!(pages(&mesh, "projectId=p&limit=7").await?.len(), 25);
    // One of them is live again, and listed once, as that.
    let failed = pages(&mesh, "projectId=p&status=failed").await?;
    assert_eq!(failed.len(), 5);
    assert_eq!(failed[0]["error"], "answered 422 Unprocessable Entity: no such page");
    mesh.set("p", json!({ "paused": true })).await?;
    let again = json!({ "projectId": "p", "jobId": failed[0]["id"] });
    mesh.post("/api/queue/retry", again).await?;
    for n in 0..30 {
        let body =
            json!({ "projectId": "p", "batchId": format!("later-{n}"), "data": { "do": "done" } });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    let all = pages(&mesh, "projectId=p&limit=10").await?;
    let mut distinct = ids(&all);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((all.len(), distinct.len()), (55, 55));
    assert_eq!(pages(&mesh, "projectId=p&status=queued&limit=4").await?.len(), 31);
    assert_eq!(pages(&mesh, "projectId=p&status=failed").await?.len(), 4);
    assert_eq!(pages(&mesh, "projectId=p&type=process_redo").await?.len(), 0);
    assert_eq!(pages(&mesh, "projectId=p&batchId=b3").await?.len(), 1);
    assert_eq!(pages(&mesh, "projectId=nobody").await?.len(), 0);
    for (query, names) in [
        ("projectId=p&errorGroup=7", "errorGroup"),
        ("projectId=p&from=yesterday", "from"),
        ("from=2026-11-27T00:00:00Z&to=2026-11-26T00:00:00Z", "to must be after from"),
        ("projectId=p&status=odd", "status"),
        ("projectId=p&type=odd", "type"),
        ("projectId=p&limit=0", "limit"),
        ("projectId=p&cursor=x", "cursor"),
        ("projectId=p&odd=1", "odd"),
    ] {
        let (status, answer) = mesh.get(&format!("/api/queue/jobs?{query}")).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(names), "{query}: {answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_shows_how_it_stands_and_a_job_its_every_step() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let batch = async |id: &str| {
        let (status, answer) = mesh.get(&format!("/api/queue/batches/{id}?projectId=p")).await?;
        anyhow::ensure!(status == 200, "{answer}");
        anyhow::Ok(answer["batch"].clone())
    };
    let (status, answer) = mesh.get("/api/queue/batches/none?projectId=p").await?;
    assert_eq!((status, &answer["code"]), (404, &json!("batch_not_found")));
    mesh.set("p", json!({ "paused": true })).await?;
    let body = json!({ "projectId": "p", "batchId": "b", "data": { "do": "wait" } });
    let first = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    assert_eq!(batch("b").await?["status"], "pending");
    mesh.set("p", json!({ "paused": false })).await?;
    receiver.until_running(1).await?;
    until("processing", async || {
        let now = batch("b").await?;
        Ok(if now["status"] == "processing" { Ok(()) } else { Err(now.to_string()) })
    })
    .await?;
    let body = json!({ "projectId": "p", "batchId": "b", "data": { "do": "busy" } });
    let second = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let path = format!("/api/queue/status/{}?wait=60s&history=true", second.as_str().unwrap());
    let (status, answer) = mesh.get(&path).await?;
    assert_eq!((status, &answer["job"]["status"]), (200, &json!("completed")), "{answer}");
    let steps: Vec<(String, u64, u64)> = answer["job"]["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            let number = |field: &str| step[field].as_u64().unwrap();
            (step["status"].as_str().unwrap().to_owned(), number("run"), number("attempt"))
        })
        .collect();
    let steps: Vec<(&str, u64, u64)> = steps.iter().map(|(s, r, a)| (s.as_str(), *r, *a)).collect();
    assert_eq!(
        steps,
        [
            ("queued", 1, 0),
            ("processing", 1, 1),
            ("queued", 2, 0),
            ("processing", 2, 1),
            ("completed", 2, 1),
        ]
    );
    let history = &answer["job"]["history"];
    assert!(history[2]["error"].as_str().unwrap().contains("busy"), "{history}");
    assert_eq!(
        (&history[2]["reason"], history[2]["runAt"].is_string()),
        (&json!("deferred"), true)
    );
    assert!(history[1]["worker"].is_string() && history[4]["at"].is_string(), "{history}");
    let now = batch("b").await?;
    assert_eq!(now["status"], "completed");
    let jobs = now["jobs"].as_array().unwrap();
    assert_eq!(ids(jobs), [second.as_str().unwrap(), first.as_str().unwrap()]);
    assert_eq!((&jobs[1]["status"], jobs[0].get("history")), (&json!("canceled"), None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_can_be_waited_for() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let body = json!({ "projectId": "p", "batchId": "b", "data": { "do": "wait" } });
    let id = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let path = format!("/api/queue/status/{}", id.as_str().unwrap());
    receiver.until_running(1).await?;
    // Not longer than asked for.
    let begun = Instant::now();
    let (_, answer) = mesh.get(&format!("{path}?wait=300ms")).await?;
    assert_eq!(answer["job"]["status"], "processing");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // An edge that stops answers at once.
    let edge = mesh.child("edge")?;
    let waited = format!("{path}?wait=60s");
    let (answer, stopped) = tokio::join!(mesh.get(&waited), async {
        // The request that waits is there before these are answered.
        for _ in 0..10 {
            mesh.get("/healthz").await?;
        }
        mesh.signal("edge", libc::SIGTERM)?;
        until("another edge", async || {
            let gone = mesh.child("edge")? != edge;
            Ok(if gone { Ok(()) } else { Err("it is still there".into()) })
        })
        .await
    });
    stopped?;
    assert_eq!(answer?.1["job"]["status"], "processing");
    until("an edge again", async || {
        let (status, answer) = mesh.get(&path).await?;
        Ok(if status == 200 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    // And no longer than needed.
    let waiting = mesh.get(&waited);
    let opening = async {
        tokio::task::yield_now().await;
        receiver.open();
    };
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(waiting, opening);
    assert_eq!(answer?.1["job"]["status"], "completed");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for odd in ["wait=x", "wait=61s", "wait=-1s", "history=maybe"] {
        let (status, answer) = mesh.get(&format!("{path}?{odd}")).await?;
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")), "{odd}");
    }
    Ok(())
}
