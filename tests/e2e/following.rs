//! Changes of jobs as server-sent events.

use serde_json::{Value, json};

use crate::{
    clients::Client,
    mesh::{Mesh, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_of_a_project_hears_of_each_change_of_its_jobs_once() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let mut stream = mesh.follow("/api/queue/events?projectId=mine").await?;
    mesh.enqueue("theirs", 3).await?;
    let jobs = mesh.enqueue("mine", 20).await?;
    let mut text = String::new();
    while text.matches("event: completed").count() < jobs.len() {
        let chunk = tokio::time::timeout(crate::mesh::PATIENCE, stream.chunk()).await??;
        text.push_str(std::str::from_utf8(&chunk.expect("the stream goes on"))?);
    }
    let mut last = (0, 0);
    let mut heard = Vec::new();
    for event in text.split("\n\n").filter(|event| event.starts_with("id:")) {
        let field = |name: &str| {
            let line = event.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let id = field("id:");
        let (sequence, index) = id.split_once('.').unwrap();
        let position: (u64, u32) = (sequence.parse()?, index.parse()?);
        assert!(position > last, "{position:?} comes after {last:?}");
        last = position;
        let data: Value = serde_json::from_str(&field("data:"))?;
        assert_eq!(
            (&data["projectId"], &data["status"]),
            (&"mine".into(), &field("event:").into())
        );
        heard.push((data["jobId"].as_str().unwrap().to_owned(), field("event:")));
    }
    for job in &jobs {
        let steps = heard.iter().filter(|(id, _)| id == job).map(|(_, status)| status.as_str());
        let steps: Vec<&str> = steps.collect();
        // An outcome implies that the run started: the report of the start may come too late.
        let whole = steps == ["queued", "processing", "completed"];
        assert!(whole || steps == ["queued", "completed"], "{steps:?}");
    }
    Ok(())
}

/// The whole of what a project's subscriber can hear, from the first event on: ids in order.
async fn from_the_first(mesh: &Mesh, project: &str, events: usize) -> anyhow::Result<Vec<String>> {
    let path = format!("/api/queue/events?projectId={project}&after=0.0");
    let mut stream = mesh.follow(&path).await?;
    let mut ids = Vec::new();
    let mut rest = String::new();
    while ids.len() < events {
        let chunk = tokio::time::timeout(crate::mesh::PATIENCE, stream.chunk()).await??;
        rest.push_str(std::str::from_utf8(&chunk.expect("the stream goes on"))?);
        while let Some(end) = rest.find("\n\n") {
            let block: String = rest.drain(..end + 2).collect();
            let id = block.lines().find_map(|line| line.strip_prefix("id: "));
            ids.extend(id.filter(|_| block.contains("event: ")).map(str::to_owned));
        }
    }
    Ok(ids)
}

/// How many changes of a project's jobs EVENTS holds.
async fn changes(mesh: &Mesh, jobs: &[String]) -> anyhow::Result<usize> {
    let mut changes = 0;
    for id in jobs {
        let (_, answer) = mesh.get(&format!("/api/queue/status/{id}?history=true")).await?;
        changes += answer["job"]["history"].as_array().map_or(0, Vec::len);
    }
    Ok(changes)
}

/// A client of the public package `eventsource` receives ten thousand events, each once and in
/// order, while its edge is killed five times.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_client_resumes_without_a_gap_or_a_repeat_over_kills_of_the_edge()
-> anyhow::Result<()> {
    const JOBS: usize = 3_500;
    const KILLS: usize = 5;
    let mesh = Mesh::start_with(&[("JOBMESH_HANDLERS", "process_batch=noop")])?;
    let client = Client::node("follow-sse.mjs", &[&mesh.url("/api/queue/events?projectId=p")])?;
    client.says("open").await?;
    let mut jobs = Vec::new();
    for part in 0..KILLS {
        let batches: Vec<String> = (0..JOBS / KILLS).map(|n| format!("{part}-{n}")).collect();
        let body = json!({ "projectId": "p", "batchIds": batches }).to_string();
        let mut ids = Value::Null;
        until("enqueued", async || {
            let key = format!("part-{part}");
            let (status, answer) =
                mesh.post_keyed("/api/queue/enqueue", body.clone(), Some(&key)).await?;
            ids = answer["jobIds"].clone();
            Ok(if status == 200 { Ok(()) } else { Err(answer.to_string()) })
        })
        .await?;
        jobs.extend(ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
        let heard = client.lines().len();
        until("some more heard", async || {
            let now = client.lines().len();
            Ok(if now > heard + 50 { Ok(()) } else { Err(format!("{now} lines")) })
        })
        .await?;
        let edge = mesh.child("edge")?;
        mesh.signal("edge", libc::SIGKILL)?;
        until("an edge again", async || {
            let now = mesh.child("edge")?;
            Ok(if now == edge { Err("not yet".into()) } else { Ok(()) })
        })
        .await?;
    }
    until("all completed", async || {
        let counts = mesh.counts("p").await?;
        Ok(if counts["completed"] == JOBS { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    let expected = from_the_first(&mesh, "p", changes(&mesh, &jobs).await?).await?;
    println!("{} events over {KILLS} kills of the edge", expected.len());
    assert!(expected.len() > 9_000, "{}", expected.len());
    let heard = || -> Vec<String> {
        let lines = client.lines().into_iter().filter(|line| line != "open");
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    until("all heard", async || {
        let heard = heard().len();
        let all = heard >= expected.len();
        Ok(if all { Ok(()) } else { Err(format!("{heard} of {}", expected.len())) })
    })
    .await?;
    assert!(heard() == expected, "the received events differ from the history");
    Ok(())
}

/// A client with a cursor older than the retained events is notified, and receives the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_older_than_what_is_kept_gets_a_gap() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let job = mesh.enqueue("p", 1).await?.remove(0);
    until("completed", async || {
        let job = mesh.job(&job).await?;
        Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    let broker = nats::Broker::connect(&mesh.nats_url()?, "test").await?;
    let events = broker.js.get_stream(nats::names::EVENTS).await?;
    let last = broker.last_sequence(nats::names::EVENTS).await?;
    events.purge().sequence(last).await?;
    // An edge that keeps nothing of what was purged.
    mesh.signal("edge", libc::SIGKILL)?;
    let mut text = String::new();
    until("a gap told", async || {
        let mut stream = mesh.follow("/api/queue/events?after=1.0").await?;
        while let Some(chunk) = stream.chunk().await? {
            text.push_str(std::str::from_utf8(&chunk)?);
            if text.contains("event: gap") {
                return Ok(Ok(()));
            }
        }
        Ok(Err(text.clone()))
    })
    .await?;
    for (query, names) in [("after=x", "after"), ("batchId=b", "projectId"), ("odd=1", "odd")] {
        let (status, answer) = mesh.get(&format!("/api/queue/events?{query}")).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(names), "{query}: {answer}");
    }
    Ok(())
}

/// Two thousand subscribers on one edge, each to its job, its batch or a project.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_subscribers_hear_each_of_their_own() -> anyhow::Result<()> {
    const PROJECTS: usize = 20;
    const JOBS: usize = 100;
    let mesh = Mesh::start_with(&[("JOBMESH_HANDLERS", "process_batch=noop")])?;
    let mut streams = Vec::new();
    for project in 0..PROJECTS {
        let name = format!("p{project}");
        mesh.set(&name, json!({ "paused": true })).await?;
        for (n, job) in mesh.enqueue(&name, JOBS).await?.into_iter().enumerate() {
            let of = match n % 10 {
                0 => format!("projectId={name}"),
                n if n % 2 == 0 => format!("jobId={job}"),
                _ => format!("projectId={name}&batchId=batch-{n}"),
            };
            let stream = mesh.follow(&format!("/api/queue/events?{of}")).await?;
            streams.push((format!("\"jobId\":\"{job}\""), stream));
        }
    }
    assert_eq!(streams.len(), 2_000);
    let begun = std::time::Instant::now();
    for project in 0..PROJECTS {
        mesh.set(&format!("p{project}"), json!({ "paused": false })).await?;
    }
    let mut hearing = tokio::task::JoinSet::new();
    for (own, mut stream) in streams {
        hearing.spawn(async move {
            let mut rest = String::new();
            loop {
                let chunk = tokio::time::timeout(crate::mesh::PATIENCE, stream.chunk()).await??;
                rest.push_str(std::str::from_utf8(&chunk.expect("the stream goes on"))?);
                while let Some((event, behind)) = rest.split_once("\n\n") {
                    if event.contains("event: completed") && event.contains(&own) {
                        return anyhow::Ok(());
                    }
                    rest = behind.to_owned();
                }
            }
        });
    }
    while let Some(ended) = hearing.join_next().await {
        ended??;
    }
    println!("2,000 subscribers received the ends of 2,000 jobs in {:?}", begun.elapsed());
    Ok(())
}

/// The samples of docs/samples, with the public clients of NATS: live, and every event.
#[tokio::test(flavor = "multi_thread")]
async fn the_samples_in_node_and_python_follow_jobs_over_nats() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let url = mesh.nats_url()?;
    let before = mesh.enqueue("p", 3).await?;
    let clients = [
        Client::node("follow.mjs", &[&url, "live", "p"])?,
        Client::python("follow.py", &[&url, "live", "p"])?,
        Client::node("follow.mjs", &[&url, "durable", "node"])?,
        Client::python("follow.py", &[&url, "durable", "python"])?,
    ];
    for client in &clients {
        client.says("following").await?;
    }
    let after = mesh.enqueue("p", 5).await?;
    for (n, client) in clients.iter().enumerate() {
        let durable = n >= 2;
        let jobs = before.iter().filter(|_| durable).chain(&after);
        for job in jobs {
            let end = format!("completed {job}");
            until(&format!("{end} received by client {n}"), async || {
                let lines = client.lines();
                let ends = lines.iter().filter(|line| line.ends_with(&end)).count();
                // Superseded: the later ones took their batches.
                let canceled = lines.iter().any(|line| line.ends_with(&format!("canceled {job}")));
                Ok(if ends == 1 || canceled { Ok(()) } else { Err(lines.join("\n")) })
            })
            .await?;
        }
        let mut lines = client.lines();
        lines.retain(|line| line != "following");
        let all = lines.len();
        lines.dedup();
        assert_eq!(lines.len(), all, "an event came twice");
    }
    Ok(())
}

/// A processor in another language, over NATS alone: docs/samples/worker.py.
#[tokio::test(flavor = "multi_thread")]
async fn the_sample_of_a_processor_in_python_runs_jobs() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_PROCESSORS", "0")])?;
    let early = mesh.enqueue("p", 2).await?;
    let worker = Client::python("worker.py", &[&mesh.processor_nats_url()?])?;
    worker.says("working").await?;
    let late = {
        let body = json!({ "projectId": "q", "batchId": "b", "data": { "text": "shout" } });
        mesh.post("/api/queue/enqueue", body).await?["jobId"].as_str().unwrap().to_owned()
    };
    for id in early.iter().chain([&late]) {
        let (_, answer) = mesh.get(&format!("/api/queue/status/{id}?wait=60s")).await?;
        assert_eq!(
            (&answer["job"]["status"], &answer["job"]["attempts"]),
            (&json!("completed"), &json!(1)),
            "{answer}"
        );
    }
    let job = mesh.job(&late).await?;
    assert_eq!((&job["result"], &job["model"]), (&json!({ "text": "SHOUT" }), &json!("upper")));
    assert_eq!(job["tokens"], json!({ "input": 5, "output": 0 }));
    assert!(job["worker"].as_str().unwrap().starts_with("python-"));
    // One that has no text fails, and is tried again.
    let body = json!({ "projectId": "q", "batchId": "odd", "maxAttempts": 2, "data": {},
        "retry": { "baseMs": 1 } });
    let odd = mesh.post("/api/queue/enqueue", body).await?["jobId"].as_str().unwrap().to_owned();
    let (_, answer) = mesh.get(&format!("/api/queue/status/{odd}?wait=60s")).await?;
    assert_eq!(
        (&answer["job"]["status"], &answer["job"]["attempts"]),
        (&json!("failed"), &json!(2)),
        "{answer}"
    );
    Ok(())
}
