//! Lists of projects, of processors, and of the jobs of all projects.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    keys::{ask, create},
    mesh::{Mesh, PATIENCE, until},
    receiver::Receiver,
};

/// The texts of a field of each item of a list.
fn texts<'a>(answer: &'a Value, list: &str, field: &str) -> Vec<&'a str> {
    let items = answer[list].as_array().unwrap();
    items.iter().map(|item| item[field].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_searched_sorted_and_listed_page_by_page() -> anyhow::Result<()> {
    let mesh = Mesh::start_with_arguments(&["--processors", "0"], &[])?;
    for (project, jobs) in [("invoices-a", 2), ("Invoices-b", 5), ("letters", 3)] {
        mesh.enqueue(project, jobs).await?;
    }
    mesh.set("letters", json!({ "paused": true, "maxConcurrency": 7 })).await?;
    let list = async |query: &str| -> anyhow::Result<Value> {
        let (status, answer) = mesh.get(&format!("/api/projects?{query}")).await?;
        anyhow::ensure!(status == 200, "{query}: {answer}");
        Ok(answer)
    };
    let by_queued = list("sort=queued").await?;
    let ids = texts(&by_queued, "projects", "projectId");
    assert_eq!(ids, ["Invoices-b", "letters", "invoices-a"]);
    let letters = &by_queued["projects"][1];
    let expected = json!([3, 0, true, 7]);
    let shown = ["queued", "processing", "paused", "maxConcurrency"].map(|it| letters[it].clone());
    assert_eq!(json!(shown), expected);
    assert!(letters["activeBytes"].as_u64().unwrap() > 3 * 10, "{letters}");
    let found = list("search=INVOICES").await?;
    assert_eq!(texts(&found, "projects", "projectId"), ["Invoices-b", "invoices-a"]);
    let first = list("limit=2").await?;
    assert_eq!((&first["total"], &first["nextCursor"]), (&json!(3), &json!("2")));
    let second = list("limit=2&cursor=2").await?;
    assert_eq!(texts(&second, "projects", "projectId"), ["letters"]);
    assert_eq!(second["nextCursor"], Value::Null);
    for (query, names) in [("sort=odd", "sort"), ("cursor=x", "cursor"), ("limit=0", "limit")] {
        let (status, answer) = mesh.get(&format!("/api/projects?{query}")).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(names), "{query}: {answer}");
    }
    keys_list_what_they_are_for(&mesh).await
}

/// A key for some projects lists these and their jobs.
async fn keys_list_what_they_are_for(mesh: &Mesh) -> anyhow::Result<()> {
    let (_, admin) = create(mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let own = json!({ "name": "own", "scope": "read", "projects": ["letters", "none"] });
    let (_, own) = create(mesh, Some(&admin), own).await?;
    until("in force", async || {
        let (status, answer) = mesh.get("/api/projects").await?;
        Ok(if status == 401 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    let list = async |key: &str, path: &str| -> anyhow::Result<Value> {
        let answer = ask(mesh, &Method::GET, path, Some(key), None).await?;
        anyhow::ensure!(answer.status == 200, "{path}: {answer:?}");
        Ok(answer.json())
    };
    let projects = list(&own, "/api/projects").await?;
    assert_eq!(texts(&projects, "projects", "projectId"), ["letters"]);
    let jobs = list(&own, "/api/queue/jobs").await?;
    assert_eq!(texts(&jobs, "jobs", "projectId"), ["letters"; 3]);
    assert_eq!(list(&admin, "/api/queue/jobs").await?["jobs"].as_array().unwrap().len(), 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_all_projects_are_listed_once_active_or_terminal() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    for project in ["one", "two", "three"] {
        let batches: Vec<String> = (0..8).map(|n| format!("b{n}")).collect();
        let kinds = ["done", "reject", "wait", "done"];
        let data: serde_json::Map<String, Value> = batches
            .iter()
            .enumerate()
            .map(|(n, batch)| (batch.clone(), json!({ "do": kinds[n % 4] })))
            .collect();
        let body = json!({ "projectId": project, "batchIds": batches, "data": data });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    let pages = async |query: &str| -> anyhow::Result<Vec<Value>> {
        let (mut jobs, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/queue/jobs?{query}{cursor}");
            let (status, page) = mesh.get(&path).await?;
            anyhow::ensure!(status == 200, "{path}: {page}");
            jobs.extend(page["jobs"].as_array().unwrap().iter().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(jobs),
            }
        }
    };
    receiver.until_running(6).await?;
    until("18 terminal", async || {
        let (_, stats) = mesh.get("/api/queue/stats").await?;
        let queue = &stats["queue"];
        let counts = (&queue["completed"], &queue["failed"], &queue["processing"]);
        Ok(if counts == (&json!(12), &json!(6), &json!(6)) {
            Ok(())
        } else {
            Err(stats.to_string())
        })
    })
    .await?;
    let jobs = pages("limit=5").await?;
    let ids: BTreeSet<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).collect();
    assert_eq!((jobs.len(), ids.len()), (24, 24));
    let status = |job: &Value| job["status"].as_str().unwrap().to_owned();
    assert!(jobs[..6].iter().all(|job| status(job) == "processing"), "{jobs:#?}");
    assert_eq!(pages("status=completed&limit=7").await?.len(), 12);
    assert_eq!(pages("batchId=b1&limit=2").await?.len(), 3);
    assert_eq!(pages("model=small").await?.len(), 12);
    assert_eq!(pages("model=large").await?.len(), 0);
    // Each is at the processor that runs it, and that processor is listed.
    let mut processor = Value::Null;
    until("in its heartbeat", async || {
        let (_, processors) = mesh.get("/api/processors").await?;
        let mut listed = processors["processors"].as_array().unwrap().iter();
        // Another one sends webhooks.
        let runs_jobs = |it: &&Value| it["types"][0] == "process_batch";
        processor = listed.find(runs_jobs).cloned().unwrap_or_default();
        let shown = ["online", "draining", "running", "capacity"].map(|it| processor[it].clone());
        let is_shown = json!(shown) == json!([true, false, 6, 8]);
        Ok(if is_shown { Ok(()) } else { Err(processors.to_string()) })
    })
    .await?;
    assert_eq!(processor["types"], json!(["process_batch", "process_redo"]));
    assert!(processor["handlers"].as_array().unwrap().contains(&json!("http")), "{processor}");
    assert_eq!(processor["version"], env!("CARGO_PKG_VERSION"));
    let name = processor["processor"].as_str().unwrap();
    let running = pages(&format!("processor={name}&status=processing&limit=4")).await?;
    assert_eq!(running.len(), 6);
    assert_eq!(pages(&format!("processor={name}")).await?.len(), 24);
    assert_eq!(pages("processor=none").await?.len(), 0);
    let before = jobs.last().unwrap()["completedAt"].as_str().unwrap();
    assert_eq!(pages(&format!("to={before}")).await?.len(), 0);
    assert_eq!(pages(&format!("from={before}&limit=5")).await?.len(), 18);
    receiver.open();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_streamed_as_they_change() -> anyhow::Result<()> {
    let mesh = Mesh::start_with_arguments(&["--processors", "0"], &[])?;
    let (status, access) = mesh.get("/api/access").await?;
    let expected = json!({ "success": true, "keyRequired": false,
        "access": { "scope": "admin", "metadataOnly": false } });
    assert_eq!((status, access), (200, expected));
    let mut all = mesh.follow("/api/queue/live").await?;
    let mut of_one = mesh.follow("/api/queue/live?projectId=one").await?;
    mesh.enqueue("one", 2).await?;
    until_queued(&mut all, 2).await?;
    until_queued(&mut of_one, 2).await?;
    mesh.enqueue("two", 2).await?;
    until_queued(&mut all, 4).await?;
    // The jobs of the other project are never in it.
    mesh.post("/api/queue/enqueue", json!({ "projectId": "one", "batchId": "more" })).await?;
    until_queued(&mut of_one, 3).await?;
    let (status, answer) = mesh.get("/api/queue/live?projectId=").await?;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")));
    Ok(())
}

/// Reads a stream of counts until it has this number of queued jobs, and never more.
async fn until_queued(stream: &mut reqwest::Response, queued: u64) -> anyhow::Result<()> {
    let mut text = String::new();
    while let Some(chunk) = timeout(PATIENCE, stream.chunk()).await?? {
        text.push_str(std::str::from_utf8(&chunk)?);
        while let Some((event, rest)) = text.split_once("\n\n") {
            let data = event.strip_prefix("event: stats\ndata: ");
            let stats: Value = data.map_or(Ok(Value::Null), serde_json::from_str)?;
            assert!(stats["queue"]["queued"].as_u64() <= Some(queued), "{stats}");
            if stats["queue"]["queued"] == queued {
                assert!(stats["position"].is_string() && stats["worker"].is_object(), "{stats}");
                return Ok(());
            }
            text = rest.to_owned();
        }
    }
    anyhow::bail!("the stream ended")
}
