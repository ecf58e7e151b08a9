//! A backup that is made under load, and meshes that are restored from it.

use std::{path::Path, process::Command};

use axum::{Json, Router, http::StatusCode, routing::post};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mesh::{Mesh, until};

/// A result that is kept in the store of large results.
const LARGE_BYTES: u64 = 400_000;

/// A handler that does as the data of the job says.
async fn handler() -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let answer = async |Json(work): Json<Value>| {
        let bytes = work["data"]["bytes"].as_u64().unwrap_or(10);
        let text = "x".repeat(usize::try_from(bytes).unwrap());
        let answer = json!({ "result": text, "tokens": { "input": 3, "output": 2 } });
        let fails = work["data"]["fails"] == true;
        (if fails { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK }, Json(answer))
    };
    let router = Router::new().route("/", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

/// Runs a command on the stores of a mesh; whether it succeeded, and its output.
pub async fn run(mesh: &Mesh, command: &str, dir: &Path) -> anyhow::Result<(bool, String)> {
    let mut run = Command::new(env!("CARGO_BIN_EXE_tests"));
    run.arg(command).arg(dir).env("JOBMESH_NATS_URL", mesh.nats_url()?);
    run.env("JOBMESH_CLICKHOUSE_URL", mesh.clickhouse_url()?);
    let output = tokio::task::spawn_blocking(move || run.output()).await??;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.success(), text))
}

/// The SHA-256 of a file.
fn sum(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_has_all_that_was_accepted_before() -> anyhow::Result<()> {
    let url = handler().await?;
    let environment = [("JOBMESH_HANDLERS", "process_batch=http"), ("JOBMESH_HTTP_URL", &url)];
    let mesh = Mesh::start_with(&environment)?;
    mesh.set("limited", json!({ "maxConcurrency": 3, "weight": 7 })).await?;
    let schedule =
        json!({ "cron": "0 3 * * *", "timeZone": "Europe/Berlin", "batchId": "nightly" });
    let path = "/api/projects/limited/schedules/nightly";
    assert_eq!(mesh.put_raw(path, schedule.to_string()).await?.0, 200);
    let job = async |batch: &str, data: Value| {
        let body = json!({ "projectId": "kinds", "batchId": batch, "data": data }).to_string();
        let (_, answer) = mesh.post_keyed("/api/queue/enqueue", body, Some(batch)).await?;
        let id = answer["jobId"].as_str().expect("accepted").to_owned();
        let (_, answer) = mesh.get(&format!("/api/queue/status/{id}?wait=60s")).await?;
        anyhow::Ok((id, answer["job"]["status"].clone()))
    };
    let (large, status) = job("large", json!({ "bytes": LARGE_BYTES })).await?;
    assert_eq!(status, "completed");
    let (failed, status) = job("failed", json!({ "fails": true })).await?;
    assert_eq!(status, "failed");
    mesh.set("paused", json!({ "paused": true })).await?;
    let mut before = mesh.enqueue("paused", 30).await?;
    let mut batches = 0..;
    let mut enqueue = async || {
        let names = batches.by_ref().take(20).map(|n: u32| format!("load-{n}"));
        let names: Vec<String> = names.collect();
        let body = json!({ "projectId": "load", "batchIds": names });
        let answer = mesh.post("/api/queue/enqueue", body).await?;
        let ids = answer["jobIds"].as_array().expect("ids").iter();
        anyhow::Ok(ids.map(|id| id.as_str().expect("an id").to_owned()).collect::<Vec<_>>())
    };
    for _ in 0..20 {
        before.extend(enqueue().await?);
    }
    let dirs = TempDir::new()?;
    let dir = dirs.path().join("backup");
    let mut backup = Box::pin(run(&mesh, "backup", &dir));
    let mut during = 0;
    let (succeeded, text) = loop {
        tokio::select! {
            backup = &mut backup => break backup?,
            enqueued = enqueue() => during += enqueued?.len(),
        }
    };
    drop(backup);
    assert!(succeeded, "{text}");
    assert!(during > 0, "nothing was enqueued meanwhile");
    let (succeeded, text) = run(&mesh, "backup", &dir).await?;
    assert!(!succeeded && text.contains("is not empty"), "{text}");
    let (succeeded, text) = run(&mesh, "restore", &dir).await?;
    assert!(!succeeded && text.contains("NATS has the streams COMMANDS"), "{text}");
    drop(mesh);

    let restore = ["--restore", dir.to_str().expect("UTF-8")];
    let mesh = Mesh::start_with_arguments(&restore, &environment)?;
    let counts = mesh.counts("paused").await?;
    assert_eq!(counts["queued"], 30, "{counts}");
    mesh.set("paused", json!({ "paused": false })).await?;
    for id in &before {
        until("completed", async || {
            let job = mesh.job(id).await?;
            Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
        })
        .await?;
    }
    let (_, answer) = mesh.get("/api/projects/limited").await?;
    assert_eq!(
        (&answer["project"]["maxConcurrency"], &answer["project"]["weight"]),
        (&json!(3), &json!(7))
    );
    assert_eq!(mesh.get(path).await?.1["schedule"]["batchId"], "nightly");
    let result = mesh.follow(&format!("/api/queue/jobs/{large}/result")).await?.bytes().await?;
    assert_eq!(result.len() as u64, LARGE_BYTES + 2);
    assert_eq!(mesh.job(&failed).await?["status"], "failed");
    // The same request is answered as it was before.
    let body =
        json!({ "projectId": "kinds", "batchId": "large", "data": { "bytes": LARGE_BYTES } });
    let (_, again) = mesh.post_keyed("/api/queue/enqueue", body.to_string(), Some("large")).await?;
    assert_eq!(again["jobId"], large.as_str(), "{again}");
    // Status and sums agree: no row is missing, and none is there twice.
    until("ended", async || {
        let counts = mesh.counts("load").await?;
        Ok(if counts["queued"] == 0 && counts["processing"] == 0 {
            Ok(())
        } else {
            Err(counts.to_string())
        })
    })
    .await?;
    let ended = async |project: &str| {
        anyhow::Ok(mesh.counts(project).await?["completed"].as_u64().unwrap_or(0))
    };
    let completed = ended("load").await? + ended("paused").await?;
    assert!(completed >= before.len() as u64, "{completed}");
    mesh.until_ended_once(usize::try_from(completed)? + 2).await?;
    until("in sums", async || {
        let (_, answer) = mesh.get("/api/queue/metrics?timeRange=all&projectId=load").await?;
        let found = answer["stats"]["successful"].as_u64();
        Ok(if found == Some(ended("load").await?) { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;

    // New work goes on, and a backup of a restored mesh can be restored, with its API keys.
    let (id, status) = {
        let ids = mesh.enqueue("load", 1).await?;
        let (_, answer) = mesh.get(&format!("/api/queue/status/{}?wait=60s", ids[0])).await?;
        (ids[0].clone(), answer["job"]["status"].clone())
    };
    assert_eq!(status, "completed", "{id}");
    let made = Command::new(env!("CARGO_BIN_EXE_tests"))
        .args(["keys", "bootstrap"])
        .env("JOBMESH_NATS_URL", mesh.nats_url()?)
        .output()?;
    let made = String::from_utf8(made.stdout)?;
    let key = made.trim().lines().last().expect("a key").to_owned();
    let second = dirs.path().join("second");
    let (succeeded, text) = run(&mesh, "backup", &second).await?;
    assert!(succeeded, "{text}");
    drop(mesh);
    let restore = ["--restore", second.to_str().expect("UTF-8")];
    let mesh = Mesh::start_with_arguments(&restore, &environment)?;
    assert_eq!(mesh.get("/api/queue/stats").await?.0, 401);
    let with_key = reqwest::Client::new().get(mesh.url(&format!("/api/queue/status/{id}")));
    let answer = with_key.bearer_auth(&key).send().await?;
    assert_eq!(answer.status(), 200);
    drop(mesh);

    // A restore that fails halfway leaves nothing that starts, as one that is interrupted.
    let broken = dirs.path().join("broken");
    std::fs::create_dir(&broken)?;
    for entry in std::fs::read_dir(&second)? {
        let entry = entry?;
        std::fs::copy(entry.path(), broken.join(entry.file_name()))?;
    }
    let (old, events) = (sum(&broken.join("EVENTS"))?, std::fs::read(broken.join("EVENTS"))?);
    std::fs::write(broken.join("EVENTS"), &events[..events.len() / 2])?;
    let new = sum(&broken.join("EVENTS"))?;
    let manifest = std::fs::read_to_string(broken.join("manifest.json"))?;
    let size =
        |bytes: usize, sum: &str| format!("\"bytes\": {bytes},\n      \"sha256\": \"{sum}\"");
    let changed = manifest.replace(&size(events.len(), &old), &size(events.len() / 2, &new));
    assert_ne!(changed, manifest);
    std::fs::write(broken.join("manifest.json"), changed)?;
    let data = TempDir::new()?;
    let start = |restore: &[&str]| {
        let mut dev = Command::new(env!("CARGO_BIN_EXE_tests"));
        dev.args(["dev", "--listen", &crate::mesh::free_address()?.to_string(), "--data-dir"]);
        let output = dev.arg(data.path()).args(restore).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::Ok((output.status.success(), text))
    };
    let (succeeded, text) = start(&["--restore", broken.to_str().expect("UTF-8")])?;
    assert!(!succeeded && text.contains("stream EVENTS could not be restored"), "{text}");
    let (succeeded, text) = start(&[])?;
    assert!(!succeeded && text.contains("has not completed: delete that directory"), "{text}");

    // Parts that are missing or of another backup are named, and nothing is restored.
    std::fs::remove_file(second.join("EVENTS"))?;
    std::fs::copy(dir.join("COMMANDS"), second.join("COMMANDS"))?;
    let empty = TempDir::new()?;
    let output = Command::new(env!("CARGO_BIN_EXE_tests"))
        .args(["dev", "--listen", &crate::mesh::free_address()?.to_string()])
        .arg("--data-dir")
        .arg(empty.path())
        .args(restore)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains("COMMANDS is another file") && text.contains("EVENTS: No such file"),
        "{text}"
    );
    Ok(())
}
