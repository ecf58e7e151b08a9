//! Messages on the streams that no service would send: nothing loops, nothing stops, and all that
//! cannot be processed is set aside and counted.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::mesh::{Mesh, until};

/// Random messages; the seed is printed, so that a run can be repeated.
const MESSAGES: usize = 100_000;
const VERBS: [&str; 9] =
    ["enqueue", "redo", "cancel", "retry", "project", "schedule", "started", "progress", "outcome"];

/// xorshift64* (Vigna): enough to vary bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// A command that would be processed, to be mutated.
fn command(random: &mut Random) -> Value {
    let id = format!("{:032x}", u128::from(random.next()) << 64 | u128::from(random.next()));
    let uuid = format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]);
    let labels = json!({ "project": "junk", "batch": "b", "type": "process_batch",
        "class": "normal", "attempt": 1, "queuedAt": 1 });
    let ask = match random.below(4) {
        0 => json!({ "project": "junk", "batches": null }),
        1 => json!({ "job": uuid, "run": 1, "worker": "w", "at": 1 }),
        2 => json!({ "job": uuid, "run": 1, "progress": { "page": 1 } }),
        _ => json!({ "job": uuid, "run": 1, "worker": "w", "labels": labels, "startedAt": 1,
            "finishedAt": 2, "usage": { "inputTokens": 1 }, "end": { "done": { "result": 1 } } }),
    };
    json!([{ "id": uuid, "command": ask }])
}

/// A body that no verb can have.
fn nonsense(random: &mut Random) -> Bytes {
    let deep = || format!("{}{}", "[".repeat(200), "]".repeat(200));
    match random.below(8) {
        0 => Bytes::new(),
        1 => Bytes::from_static(b"\xff\xfe\x00"),
        2 => Bytes::from_static(b"{}"),
        3 => Bytes::from_static(b"[1,2,3]"),
        4 => Bytes::from_static(br#"[{"id":"x","command":{}}]"#),
        5 => deep().into(),
        6 => {
            let text = command(random).to_string();
            let end = 1 + random.below(text.len() - 2);
            text.as_bytes()[..end].to_vec().into()
        }
        _ => json!([{ "id": 7, "command": { "jobs": "none" } }]).to_string().into(),
    }
}

/// A valid body with some bytes changed: it may mean something, or nothing.
fn mutated(random: &mut Random) -> Bytes {
    let mut bytes = command(random).to_string().into_bytes();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        bytes[at] = u8::try_from(random.next() & 0x7f).unwrap();
    }
    bytes.into()
}

async fn flood(client: &Client, random: &mut Random) -> anyhow::Result<(u64, u64)> {
    let (mut certain, mut perhaps) = (0, 0);
    for n in 0..MESSAGES {
        let verb = VERBS[random.below(VERBS.len())];
        match n % 4 {
            0 => {
                client.publish("jobmesh.evt", nonsense(random)).await?;
                certain += 1;
            }
            1 => {
                // A copy of what a state service appends, with its headers.
                let mut headers = HeaderMap::new();
                headers.insert("Jobmesh-Append", "0");
                headers.insert("Jobmesh-Through", "1000000");
                let body = r#"{"at":1,"events":[{"led":{"term":9999,"leader":"junk"}}]}"#;
                client.publish_with_headers("jobmesh.evt", headers, body.into()).await?;
                certain += 1;
            }
            2 => {
                let verb = if n % 8 == 2 { "destroy" } else { verb };
                client.publish(format!("jobmesh.cmd.{verb}"), nonsense(random)).await?;
                certain += 1;
            }
            _ => {
                client.publish(format!("jobmesh.cmd.{verb}"), mutated(random)).await?;
                perhaps += 1;
            }
        }
    }
    client.flush().await?;
    Ok((certain, perhaps))
}

async fn a_job_runs(mesh: &Mesh, batch: &str) -> anyhow::Result<()> {
    let body = json!({ "projectId": "p", "batchId": batch });
    let id = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let id = id.as_str().unwrap();
    until("completed", async || {
        let job = mesh.job(id).await?;
        Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
    })
    .await
}

async fn rejected(mesh: &Mesh) -> anyhow::Result<u64> {
    let (_, ready) = mesh.get("/readyz").await?;
    Ok(ready["rejectedMessages"].as_u64().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_nonsense_stops_nobody_and_is_counted() -> anyhow::Result<()> {
    let seed = 0x5eed_0011;
    println!("seed {seed:#x}");
    let mesh = Mesh::start_with(&[("JOBMESH_DURABILITY", "fast")])?;
    a_job_runs(&mesh, "before").await?;
    let leader = mesh.leader()?;
    let client = mesh.nats_client().await?;
    let (certain, perhaps) = flood(&client, &mut Random(seed)).await?;
    a_job_runs(&mesh, "after").await?;
    // Events need an append to be looked at: the job's were behind all of them.
    until("set aside", async || {
        let found = rejected(&mesh).await?;
        let expected = certain..=certain + perhaps;
        Ok(if expected.contains(&found) { Ok(()) } else { Err(format!("{found} of {expected:?}")) })
    })
    .await?;
    assert_eq!(mesh.leader()?, leader);
    let logs = mesh.logs();
    assert!(!logs.contains("starting over"), "a service started over:\n{logs}");
    assert_eq!(logs.matches("leading term=").count(), 1, "another replica had to lead");
    a_job_runs(&mesh, "at the end").await?;
    // A restart may meet the same messages again; none is counted twice.
    let before = rejected(&mesh).await?;
    mesh.signal("state", libc::SIGKILL)?;
    a_job_runs(&mesh, "after a restart").await?;
    assert_eq!(rejected(&mesh).await?, before);
    let counts = mesh.counts("p").await?;
    assert_eq!(counts["completed"], 4, "{counts}");
    until("counted", async || {
        let (_, metrics) = mesh.get("/api/queue/metrics?projectId=p").await?;
        let successful = &metrics["stats"]["successful"];
        Ok(if *successful == 4 { Ok(()) } else { Err(successful.to_string()) })
    })
    .await
}

/// Outcomes beyond every bound, from a foreign processor.
#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_outcome_is_one_jobs_trouble() -> anyhow::Result<()> {
    const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
    let mesh = Mesh::start()?;
    // No processor runs these jobs.
    mesh.set("p", json!({ "paused": true })).await?;
    let client = mesh.nats_client().await?;
    let js = async_nats::jetstream::new(client);
    let large = |bytes: usize| "x".repeat(bytes);
    let ends = [
        json!({ "reject": { "error": large(4_300_000) } }),
        json!({ "retry": { "error": large(2_500_000), "afterMs": i64::MAX } }),
        json!({ "done": { "result": large(5_000_000) } }),
        json!({ "done": { "result": large(5_000_000) } }),
        json!({ "done": { "result": large(300_000) } }),
    ];
    let jobs = mesh.enqueue("p", ends.len()).await?;
    for (n, (job, end)) in jobs.iter().zip(&ends).enumerate() {
        let labels = json!({ "project": "p", "batch": "b", "type": "process_batch",
            "class": "normal", "attempt": 1, "queuedAt": 1 });
        let usage =
            json!({ "inputTokens": u64::MAX, "model": large(900_000 / ends.len() / 1_000) });
        let token = mesh.run_token(job, 1).await?;
        let outcome = json!({ "job": job, "run": 1, "worker": "foreign", "labels": labels, "token": token,
            "startedAt": i64::MIN, "finishedAt": i64::MAX, "usage": usage, "end": end });
        let mut items = json!([{ "id": job, "command": outcome }]).to_string();
        // Two fill a message but for so many bytes.
        if let Some(left) = [101, 1].get(n.wrapping_sub(2)) {
            let at = items.find("xxxx").expect("it has a long text");
            items.insert_str(at, &large(MESSAGE_BYTES_MAX - left - items.len()));
        }
        js.publish("jobmesh.cmd.outcome", items.into()).await?.await?;
    }
    for (n, job) in jobs.iter().enumerate() {
        let retried = n == 1;
        until("ended or tried again", async || {
            let job = mesh.job(job).await?;
            let shown = job["status"] == if retried { "queued" } else { "failed" };
            Ok(if shown && job["error"].is_string() { Ok(()) } else { Err(job.to_string()) })
        })
        .await?;
        let job = mesh.job(job).await?;
        let error = job["error"].as_str().unwrap();
        assert!(error.len() < 5_000, "{} bytes", error.len());
        if n >= 2 {
            assert!(error.contains("262144") && error.contains("xxx"), "{error}");
        }
    }
    tokio::time::timeout(Duration::from_secs(60), mesh.counts("p")).await??;
    let logs = mesh.logs();
    assert!(!logs.contains("starting over"), "{logs}");
    until("counted", async || {
        let rows = mesh.sql("SELECT count(), max(tokens_in) < 2e12 FROM job_runs").await?;
        Ok(if rows == "5\t1" { Ok(()) } else { Err(rows) })
    })
    .await?;
    for what in ["killed", "killed again"] {
        mesh.signal("state", libc::SIGKILL)?;
        let job = mesh.enqueue("other", 1).await?.remove(0);
        until(&format!("completed by a mesh whose state was {what}"), async || {
            let job = mesh.job(&job).await?;
            Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
        })
        .await?;
    }
    Ok(())
}

/// Foreign values in the buckets are replaced or ignored, not retried without limit.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_the_buckets_stops_nobody() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    a_job_runs(&mesh, "before").await?;
    until("counted", async || {
        let rows = mesh.sql("SELECT count() FROM job_runs").await?;
        Ok(if rows == "1" { Ok(()) } else { Err(rows) })
    })
    .await?;
    let js = async_nats::jetstream::new(mesh.nats_client().await?);
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    for key in ["leases.metrics", "leases.state", "jobs._through", &format!("jobs.{unknown}")] {
        js.publish(format!("$KV.{key}"), "nonsense".into()).await?.await?;
    }
    for service in ["state", "metrics"] {
        let killed = mesh.child(service)?;
        mesh.signal(service, libc::SIGKILL)?;
        until("started again", async || {
            let now = mesh.child(service)?;
            Ok(if now == killed { Err("not yet".into()) } else { Ok(()) })
        })
        .await?;
    }
    let body = json!({ "projectId": "p", "jobId": unknown }).to_string();
    let (status, answer) = mesh.post_raw("/api/queue/retry", body).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("job_not_found")), "{answer}");
    a_job_runs(&mesh, "after").await?;
    until("counted, each once", async || {
        let rows = mesh.sql("SELECT count(), uniqExact(job) FROM job_runs").await?;
        Ok(if rows == "2\t2" { Ok(()) } else { Err(rows) })
    })
    .await
}
