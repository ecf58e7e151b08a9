//! Processors that are not trusted: each has a login of its own, and can report on the runs that it was given only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::Context;
use futures_util::{FutureExt, StreamExt};
use job::JobType;
use nats::{
    Broker,
    access::{Access, Login, Tls},
    consumer::Pullers,
    names,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    clients::Client,
    login_broker::{STREAM_REQUESTS, STREAMS, broker_with_users, on_stream, processed},
    mesh::{Mesh, until},
    services::program,
};

/// Makes a login with the command line.
async fn create(name: &str, types: &[&str], seed_file: &Path) -> anyhow::Result<Output> {
    let mut jobmesh = Command::new(program());
    jobmesh.args(["keys", "create", "--processor", "--name", name]);
    jobmesh.args(types.iter().flat_map(|job_type| ["--type", job_type]));
    jobmesh.arg("--seed-file").arg(seed_file);
    Ok(tokio::task::spawn_blocking(move || jobmesh.output()).await??)
}

/// A process that is killed when this is dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Makes the login `ocr` for redos: its user for the broker, and the file with its seed.
async fn ocr(dir: &TempDir) -> anyhow::Result<(String, PathBuf)> {
    let seed_file = dir.path().join("ocr.nk");
    let made = create("ocr", &["process_redo"], &seed_file).await?;
    let says = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success() && says.contains("JOBMESH_NATS_INBOX=processor-ocr"), "{says}");
    let user = String::from_utf8(made.stdout)?;
    assert!(!user.contains(fs::read_to_string(&seed_file)?.trim()), "the seed is shown");
    let again = create("ocr", &["process_redo"], &seed_file).await?;
    assert!(!again.status.success(), "a seed was overwritten");
    Ok((user, seed_file))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processors_own_login_takes_work_of_its_types() -> anyhow::Result<()> {
    let (dir, data_dir) = (TempDir::new()?, TempDir::new()?);
    let (user, seed_file) = ocr(&dir).await?;
    fs::write(data_dir.path().join("nats.users.conf"), user)?;
    let mesh = Mesh::start_in(data_dir, &[("JOBMESH_PROCESSORS", "0")])?;
    let url = mesh.nats_url()?;
    let address = url.rsplit_once('@').context("the URL has a login")?.1.to_owned();
    let process = Command::new(program())
        .args(["serve", "processor", "--nats-url", &address, "--handler", "process_redo=noop"])
        .env("JOBMESH_NATS_NKEY_FILE", &seed_file)
        .env("JOBMESH_NATS_INBOX", "processor-ocr")
        .env("JOBMESH_TYPES", "process_redo")
        .env("JOBMESH_WEBHOOK_CONCURRENCY", "0")
        .spawn()?;
    let _process = Running(process);
    let batch = mesh.enqueue("p", 1).await?.remove(0);
    let redo = json!({ "projectId": "p", "batchId": "b", "rowIndex": 1, "redoColumnIds": ["c"],
        "croppedImageIds": {} });
    let redone = mesh.post("/api/queue/redo", redo).await?;
    let redone = redone["jobId"].as_str().context("jobId")?.to_owned();
    let (_, answer) = mesh.get(&format!("/api/queue/status/{redone}?wait=60s")).await?;
    assert_eq!(answer["job"]["status"], "completed", "{answer}");
    assert_eq!(mesh.job(&batch).await?["status"], "queued", "it is of another type");
    let mut doctor = Command::new(program());
    doctor.args(["doctor", "--json", "--url", &mesh.url("")]);
    let found = tokio::task::spawn_blocking(move || doctor.output()).await??;
    let found: Value = serde_json::from_slice(&found.stdout)?;
    let mut checks = found["checks"].as_array().context("checks")?.iter();
    let types = checks.find(|check| check["check"] == "types").context("a check of types")?;
    let says = types["says"].as_str().unwrap_or_default();
    assert!(types["ok"] == false && says.contains("process_batch"), "{types}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processors_own_login_may_do_nothing_else() -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let (user, seed_file) = ocr(&dir).await?;
    let (nats, admin) = broker_with_users(&user).await?;
    let login = Login::Nkey(fs::read_to_string(seed_file)?.into());
    let access = Access::new(&nats.url(), login, Tls::default())?;
    let broker = Broker::connect_with(&access.with_inboxes_of("processor-ocr"), "ocr").await?;
    Pullers::ensure(&broker, vec![JobType::ProcessRedo]).await?;
    assert!(Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await.is_err());
    let mut arrived = admin.client.subscribe(">").await?;
    processed(&admin).await?;
    for subject in forbidden() {
        broker.client.publish(subject, "forbidden".into()).await?;
    }
    broker.client.publish(names::QUERY_CURRENT, "the end".into()).await?;
    loop {
        let message = arrived.next().await.context("the connection is open")?;
        assert_ne!(message.payload, "forbidden", "{}", message.subject);
        if message.payload == "the end" {
            break;
        }
    }
    drop(arrived);
    // What others receive.
    let inbox = broker.client.new_inbox();
    let mut own = broker.client.subscribe(format!("{inbox}.>")).await?;
    let mut others = broker.client.subscribe("_INBOX.processor.>").await?;
    processed(&broker).await?;
    admin.client.publish("_INBOX.processor.x", "secret".into()).await?;
    admin.client.publish(format!("{inbox}.x"), "own".into()).await?;
    assert_eq!(own.next().await.context("the connection is open")?.payload, "own");
    assert!(others.next().now_or_never().flatten().is_none(), "it reads the inboxes of others");
    Ok(())
}

/// A job that the sample runs.
async fn shouts(mesh: &Mesh) -> anyhow::Result<()> {
    let body = json!({ "projectId": "p", "batchId": "b", "data": { "text": "shout" } });
    let job = mesh.post("/api/queue/enqueue", body).await?;
    let job = job["jobId"].as_str().context("jobId")?;
    let (_, answer) = mesh.get(&format!("/api/queue/status/{job}?wait=60s")).await?;
    assert_eq!(answer["job"]["result"], json!({ "text": "SHOUT" }), "{answer}");
    Ok(())
}

/// docs/samples/worker.py with a login of its own, and programs of handlers that receive no token.
#[tokio::test(flavor = "multi_thread")]
async fn the_sample_in_python_runs_jobs_with_a_login_of_its_own() -> anyhow::Result<()> {
    let (dir, data_dir) = (TempDir::new()?, TempDir::new()?);
    let seed_file = dir.path().join("python.nk");
    let made = create("python", &["process_batch"], &seed_file).await?;
    fs::write(data_dir.path().join("nats.users.conf"), made.stdout)?;
    let mesh = Mesh::start_in(data_dir, &[("JOBMESH_PROCESSORS", "0")])?;
    let url = mesh.nats_url()?;
    let address = url.rsplit_once('@').context("the URL has a login")?.1;
    let seed_file = seed_file.display().to_string();
    let login =
        [("JOBMESH_NATS_NKEY_FILE", &*seed_file), ("JOBMESH_NATS_INBOX", "processor-python")];
    let worker = Client::python_with("worker.py", &[&format!("nats://{address}")], &login)?;
    worker.says("working").await?;
    shouts(&mesh).await
}

/// The same processor as it was before there were tokens.
#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_repeats_no_token_works_if_that_is_allowed() -> anyhow::Result<()> {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/samples/worker.py");
    let sample = fs::read_to_string(sample)?;
    let without = sample.replace(r#""token": work.get("token")"#, "**{}");
    assert!(!without.contains("token\":"), "it repeats the token elsewhere");
    let dir = TempDir::new()?;
    let program = dir.path().join("worker.py");
    fs::write(&program, without)?;
    let variables = [("JOBMESH_PROCESSORS", "0"), ("JOBMESH_ALLOW_MISSING_RUN_TOKENS", "true")];
    let mesh = Mesh::start_with(&variables)?;
    let worker = Client::python_with(&program.display().to_string(), &[&mesh.nats_url()?], &[])?;
    worker.says("working").await?;
    shouts(&mesh).await
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_handlers_receive_no_token() -> anyhow::Result<()> {
    let command = r#"read job; case "$job" in *token*) exit 65;; *) echo '{"result": 1}';; esac"#;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_COMMAND", command),
        ("JOBMESH_HANDLERS", "process_batch=command"),
    ])?;
    let job = mesh.enqueue("p", 1).await?.remove(0);
    let (_, answer) = mesh.get(&format!("/api/queue/status/{job}?wait=60s")).await?;
    assert_eq!(answer["job"]["status"], "completed", "{answer}");
    Ok(())
}

/// What this login must not publish to.
fn forbidden() -> Vec<String> {
    let mut subjects: Vec<String> = [
        "jobmesh.cmd.enqueue",
        "jobmesh.cmd.cancel",
        "jobmesh.cmd.project",
        names::EVENT_SUBJECT,
        "jobmesh.work.high.process_redo.j.1",
        "jobmesh.state.job",
        "jobmesh.state.all.job",
        names::QUERY_METRICS,
        names::CONTROL_CANCEL,
        "$KV.jobs.x",
        "$KV.leases.run-tokens",
        "$KV.keys.key.k",
        "_INBOX.processor.x",
        "_INBOX.state.x",
        "$JS.ACK.WORK_HIGH.process_batch.1.1.1.1.0",
        "$JS.API.CONSUMER.CREATE.WORK_HIGH.process_redo",
        "$JS.API.CONSUMER.CREATE.WORK_HIGH.process_redo.jobmesh.work.high.process_batch.*.*",
        "$JS.API.CONSUMER.DURABLE.CREATE.WORK_HIGH.process_redo",
        "$JS.API.CONSUMER.MSG.NEXT.WORK_HIGH.process_batch",
        "$JS.API.CONSUMER.DELETE.WORK_HIGH.process_redo",
    ]
    .map(str::to_owned)
    .into();
    for stream in STREAMS {
        // It has to see that the streams which it uses are there.
        let is_used = stream.starts_with("WORK_") || stream == names::RESULTS_STREAM;
        let requests = STREAM_REQUESTS.iter();
        let requests = requests.filter(|request| !(is_used && **request == "STREAM.INFO.S"));
        subjects.extend(requests.map(|request| on_stream(request, stream)));
    }
    subjects
}

/// The processor that has a run is the one that ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_counts_only_with_the_token_of_its_run() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_PROCESSORS", "0")])?;
    let job = mesh.enqueue("p", 1).await?.remove(0);
    let other = mesh.enqueue("q", 1).await?.remove(0);
    let js = async_nats::jetstream::new(mesh.nats_client().await?);
    let labels = json!({ "project": "p", "batch": "b", "type": "process_batch", "class": "normal",
        "attempt": 1, "queuedAt": 1 });
    let report = |verb: &str, token: Option<String>| {
        let command = match verb {
            "started" => json!({ "job": job, "run": 1, "worker": "rogue", "at": 1 }),
            "progress" => json!({ "job": job, "run": 1, "progress": 1 }),
            _ => json!({ "job": job, "run": 1, "worker": "rogue", "labels": labels,
                "startedAt": 1, "finishedAt": 2, "end": { "done": {} } }),
        };
        let mut items = json!([{ "id": job, "command": command }]);
        if let Some(token) = token {
            items[0]["command"]["token"] = token.into();
        }
        js.publish(format!("jobmesh.cmd.{verb}"), items.to_string().into())
    };
    let of_other = mesh.run_token(&other, 1).await?;
    for verb in ["started", "progress", "outcome"] {
        for token in [None, Some(of_other.clone())] {
            report(verb, token).await?.await?;
        }
    }
    let mut rejected = js.get_stream(names::REJECTED).await?;
    until("refused", async || {
        let count = rejected.info().await?.state.messages;
        Ok(if count == 6 { Ok(()) } else { Err(count.to_string()) })
    })
    .await?;
    let first = rejected.get_raw_message(1).await?;
    let reason = first.headers.get(names::REJECTED_REASON).context("a reason")?.as_str();
    assert!(reason.contains(&job) && reason.contains("token"), "{reason}");
    let shown = mesh.job(&job).await?;
    assert_eq!((&shown["status"], shown.get("worker")), (&json!("queued"), None::<&Value>));
    // However many reports a message has, it is set aside once, and holds up no other.
    let started = json!({ "job": job, "run": 1, "worker": "rogue", "at": 1 });
    let many: Vec<Value> =
        (0..10_000).map(|_| json!({ "id": other, "command": started })).collect();
    js.publish("jobmesh.cmd.started", json!(many).to_string().into()).await?.await?;
    report("outcome", Some(mesh.run_token(&job, 1).await?)).await?.await?;
    until("refused with a number", async || {
        let count = rejected.info().await?.state.messages;
        Ok(if count == 7 { Ok(()) } else { Err(count.to_string()) })
    })
    .await?;
    let last = rejected.info().await?.state.last_sequence;
    let last = rejected.get_raw_message(last).await?;
    let reason = last.headers.get(names::REJECTED_REASON).context("a reason")?.as_str();
    assert!(reason.contains("9999 more"), "{reason}");
    let (_, answer) = mesh.get(&format!("/api/queue/status/{job}?wait=60s")).await?;
    assert_eq!(answer["job"]["status"], "completed", "{answer}");
    Ok(())
}
