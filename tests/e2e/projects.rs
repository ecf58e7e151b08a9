//! Settings of projects: limits, weight, pause, handler, attempts, retention.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

/// Enqueues `count` jobs of a project that do `what`.
async fn enqueue(mesh: &Mesh, project: &str, count: usize, what: Value) -> anyhow::Result<Value> {
    let batches: Vec<String> = (0..count).map(|n| format!("b{n}")).collect();
    let data: serde_json::Map<String, Value> =
        batches.iter().map(|batch| (batch.clone(), what.clone())).collect();
    let body = json!({ "projectId": project, "batchIds": batches, "data": data });
    mesh.post("/api/queue/enqueue", body).await
}

async fn until_counts(mesh: &Mesh, project: &str, field: &str, count: u64) -> anyhow::Result<()> {
    until(&format!("{count} {field} in {project}"), async || {
        let counts = mesh.counts(project).await?;
        Ok(if counts[field] == count { Ok(()) } else { Err(counts.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_shown_changed_one_by_one_reset_and_kept() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[("JOBMESH_REQUESTS_PER_MINUTE", "30")])?;
    let (status, answer) = mesh.get("/api/projects/a.b").await?;
    assert_eq!(status, 200, "{answer}");
    let defaults = answer["project"].clone();
    let expected = json!({
        "projectId": "a.b", "maxActiveJobs": 0, "maxActiveBytes": 0, "enqueuesPerMinute": 0,
        "maxSchedules": 1_000, "maxConcurrency": 0, "requestsPerMinute": 30, "tokensPerMinute": 0,
        "weight": 1, "paused": false, "maxAttempts": 3, "retention": 7 * 24 * 3_600,
        "maxDeferral": 24 * 3_600,
        "retry": { "baseMs": 1_000, "factor": 2.0, "capMs": 300_000, "jitter": 0.2 },
        "usage": { "runningJobs": 0, "startsInLastMinute": 0, "tokensInLastMinute": 0,
            "enqueuedInLastMinute": 0, "activeJobs": 0, "activeBytes": 0, "schedules": 0 },
    });
    assert_eq!(defaults, expected);
    let change = json!({
        "maxConcurrency": 2, "requestsPerMinute": 600, "tokensPerMinute": 90_000, "weight": 3,
        "paused": true, "maxAttempts": 7, "retention": 3_600, "handler": "tokenize",
        "retry": { "baseMs": 5 },
    });
    let set = mesh.set("a.b", change.clone()).await?;
    for (name, value) in change.as_object().unwrap() {
        let found = if name == "retry" {
            json!({ "baseMs": set[name]["baseMs"] })
        } else {
            set[name].clone()
        };
        assert_eq!(&found, value, "{name}");
    }
    let set = mesh.set("a.b", json!({ "paused": false, "weight": null, "handler": null })).await?;
    assert_eq!((&set["paused"], &set["weight"]), (&json!(false), &json!(1)));
    assert_eq!((&set["maxConcurrency"], set.get("handler")), (&json!(2), None));
    let stats = mesh.get("/api/queue/stats?projectId=a.b").await?.1;
    let worker = &stats["worker"];
    assert_eq!((&worker["requestsPerMinute"], &worker["maxConcurrency"]), (&json!(600), &json!(2)));
    mesh.signal("state", libc::SIGKILL)?;
    until("kept", async || {
        let (_, answer) = mesh.get("/api/projects/a.b").await?;
        Ok(if answer["project"] == set { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    refused_settings(&mesh).await?;
    let (_, answer) = mesh.get("/api/projects/a.b").await?;
    assert_eq!(answer["project"], set, "what was refused changed nothing");
    Ok(())
}

async fn refused_settings(mesh: &Mesh) -> anyhow::Result<()> {
    for (change, names) in [
        ("", "JSON object"),
        ("[]", "JSON object"),
        (r#"{"maxConcurrency":-1}"#, "maxConcurrency"),
        (r#"{"maxConcurrency":"2"}"#, "maxConcurrency"),
        (r#"{"maxConcurrency":1.5}"#, "maxConcurrency"),
        (r#"{"requestsPerMinute":5000000000}"#, "requestsPerMinute"),
        (r#"{"tokensPerMinute":true}"#, "tokensPerMinute"),
        (r#"{"weight":0}"#, "weight"),
        (r#"{"weight":101}"#, "weight"),
        (r#"{"paused":1}"#, "paused"),
        (r#"{"maxAttempts":0}"#, "maxAttempts"),
        (r#"{"maxAttempts":101}"#, "maxAttempts"),
        (r#"{"retention":0}"#, "retention"),
        (r#"{"handler":""}"#, "handler"),
        (r#"{"handler":"a b"}"#, "handler"),
        (r#"{"handler":"llm","options":{"promt":"x"}}"#, "promt"),
        (r#"{"retry":{"jitter":2}}"#, "retry.jitter"),
        (r#"{"retry":{"factor":0.5}}"#, "retry.factor"),
        (r#"{"retry":{"base":1}}"#, "base"),
        (r#"{"maxConcurency":1}"#, "maxConcurency"),
        (r#"{"webhook":{"url":"https://example.com"}}"#, "secret"),
        (r#"{"webhook":{"url":"ftp://example.com","secret":"whsec_AAAA"}}"#, "webhook.url"),
        (r#"{"webhook":{"url":"/hook","secret":"whsec_AAAA"}}"#, "webhook.url"),
        (r#"{"webhook":{"url":"https://example.com","secret":"whsec_AAAA"}}"#, "webhook.secret"),
        (r#"{"webhook":{"url":"https://example.com","secret":"open"}}"#, "webhook.secret"),
        (&webhook_with(r#""events":["queued"]"#), "webhook.events"),
        (&webhook_with(r#""events":[]"#), "webhook.events"),
        (&webhook_with(r#""maxAttempts":0"#), "webhook.maxAttempts"),
        (&webhook_with(r#""retry":{"jitter":2}"#), "webhook.retry.jitter"),
        (&webhook_with(r#""method":"PUT""#), "method"),
    ] {
        let (status, answer) = mesh.put_raw("/api/projects/a.b", change.to_owned()).await?;
        assert_eq!((status, &answer["success"]), (400, &json!(false)), "{change}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(names), "{change}: {answer}");
    }
    Ok(())
}

/// A webhook that is right but for this field.
fn webhook_with(field: &str) -> String {
    let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    format!(r#"{{"webhook":{{"url":"https://example.com","secret":"{secret}",{field}}}}}"#)
}

/// Slots are counted over all processors, whatever crashes.
#[tokio::test(flavor = "multi_thread")]
async fn max_concurrency_holds_over_two_processors_and_a_crash_of_one() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_PROCESSORS", "2"), ("JOBMESH_CONCURRENCY", "4")])?;
    mesh.set("p", json!({ "maxConcurrency": 3 })).await?;
    enqueue(&mesh, "p", 60, json!({ "do": "work", "ms": 50 })).await?;
    until_counts(&mesh, "p", "completed", 60).await?;
    assert_eq!(receiver.most_running(), 3);
    enqueue(&mesh, "p", 10, json!({ "do": "wait" })).await?;
    receiver.until_running(3).await?;
    mesh.signal("processor", libc::SIGKILL)?;
    // What the dead one ran is given up and handed out again: three run, never more.
    let ran: std::collections::HashSet<String> =
        receiver.all().iter().map(|run| run.job.clone()).collect();
    until("a run given up where the dead one had any", async || {
        let counts = mesh.counts("p").await?;
        let alive = (receiver.running(), &counts["processing"]) == (3, &json!(3));
        Ok(if alive { Ok(()) } else { Err(format!("{} run, {counts}", receiver.running())) })
    })
    .await?;
    assert_eq!(ran.len(), 63);
    receiver.open();
    until_counts(&mesh, "p", "completed", 70).await?;
    assert_eq!(receiver.most_running(), 3);
    Ok(())
}

/// A slot that a job leaves is taken by the next one of its project within 20 ms.
#[tokio::test(flavor = "multi_thread")]
async fn a_freed_slot_is_refilled_at_once() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    mesh.set("p", json!({ "maxConcurrency": 1 })).await?;
    enqueue(&mesh, "p", 100, json!({ "do": "work", "ms": 20 })).await?;
    until_counts(&mesh, "p", "completed", 100).await?;
    let mut gaps: Vec<_> = receiver.all().iter().filter_map(|run| run.since_an_end).collect();
    gaps.sort_unstable();
    let (median, most) = (gaps[gaps.len() / 2], gaps[gaps.len() * 9 / 10]);
    println!("a freed slot is refilled after {median:?} (median), {:?} (longest)", gaps.last());
    // Most: other tests share the cores.
    assert!(median.as_millis() < 20, "median {median:?}, nine of ten {most:?}, {:?}", gaps.last());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_and_tokens_of_a_minute_hold_back_what_is_queued_until_the_limit_is_raised()
-> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    mesh.set("starts", json!({ "requestsPerMinute": 5 })).await?;
    enqueue(&mesh, "starts", 12, json!({ "do": "done" })).await?;
    until_counts(&mesh, "starts", "completed", 5).await?;
    // One after the other: 13 tokens each, so that the second one reaches the limit.
    mesh.set("tokens", json!({ "tokensPerMinute": 20, "maxConcurrency": 1 })).await?;
    enqueue(&mesh, "tokens", 6, json!({ "do": "done" })).await?;
    until_counts(&mesh, "tokens", "completed", 2).await?;
    let other = enqueue(&mesh, "other", 20, json!({ "do": "done" })).await?;
    assert_eq!(other["jobIds"].as_array().unwrap().len(), 20);
    until_counts(&mesh, "other", "completed", 20).await?;
    // The permits outlive the one that counted them.
    mesh.signal("state", libc::SIGKILL)?;
    enqueue(&mesh, "other", 20, json!({ "do": "done" })).await?;
    until_counts(&mesh, "other", "completed", 40).await?;
    assert_eq!(mesh.counts("starts").await?["completed"], 5);
    assert_eq!(mesh.counts("tokens").await?["completed"], 2);
    let (_, usage) = mesh.get("/api/projects/starts").await?;
    assert_eq!(usage["project"]["usage"]["startsInLastMinute"], 5);
    let (_, usage) = mesh.get("/api/projects/tokens").await?;
    assert_eq!(usage["project"]["usage"]["tokensInLastMinute"], 26);
    mesh.set("starts", json!({ "requestsPerMinute": 9 })).await?;
    until_counts(&mesh, "starts", "completed", 9).await?;
    mesh.set("starts", json!({ "requestsPerMinute": 0 })).await?;
    until_counts(&mesh, "starts", "completed", 12).await?;
    mesh.set("tokens", json!({ "tokensPerMinute": null })).await?;
    until_counts(&mesh, "tokens", "completed", 6).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_project_starts_nothing_until_it_is_resumed() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    mesh.set("still", json!({ "paused": true })).await?;
    enqueue(&mesh, "still", 5, json!({ "do": "done" })).await?;
    enqueue(&mesh, "other", 50, json!({ "do": "done" })).await?;
    until_counts(&mesh, "other", "completed", 50).await?;
    let counts = mesh.counts("still").await?;
    assert_eq!((&counts["queued"], &counts["completed"]), (&json!(5), &json!(0)));
    assert!(receiver.all().iter().all(|run| run.project == "other"));
    mesh.set("still", json!({ "paused": false })).await?;
    until_counts(&mesh, "still", "completed", 5).await
}

/// A crowd of 100,000 delays another project's single job by what runs already and 50 ms.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_of_one_project_does_not_delay_anothers_job() -> anyhow::Result<()> {
    const RUN_MS: u64 = 300;
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_CONCURRENCY", "4")])?;
    for n in 0..10 {
        let batches: Vec<String> = (0..10_000).map(|m| format!("b{n}-{m}")).collect();
        let data: serde_json::Map<String, Value> =
            batches.iter().map(|b| (b.clone(), json!({ "do": "work", "ms": RUN_MS }))).collect();
        let body = json!({ "projectId": "crowd", "batchIds": batches, "data": data });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    receiver.until_running(4).await?;
    assert!(mesh.counts("crowd").await?["queued"].as_u64() > Some(99_000));
    let mut waits = Vec::new();
    for n in 1..=5 {
        let one = enqueue(&mesh, "single", 1, json!({ "do": "done" })).await?;
        let accepted = std::time::Instant::now();
        until_counts(&mesh, "single", "completed", n).await?;
        let id = one["jobIds"][0].as_str().unwrap();
        let runs = receiver.all();
        let started = runs.iter().position(|run| run.job == id).unwrap();
        waits.push(runs[started].at.saturating_duration_since(accepted));
    }
    waits.sort_unstable();
    println!("a single job behind 100,000 waited {waits:?}");
    // Most: other tests share the cores.
    assert!(waits[2] <= Duration::from_millis(RUN_MS + 50), "{waits:?}");
    Ok(())
}

/// The lowest class keeps its share, 10 %, of the starts while a higher one waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_lower_class_keeps_its_share_of_the_starts() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_CONCURRENCY", "4")])?;
    mesh.set("p", json!({ "paused": true })).await?;
    let mut low = Vec::new();
    for (batch, priority) in [("high", 0), ("low", 500)] {
        let batches: Vec<String> = (0..300).map(|n| format!("{batch}-{n}")).collect();
        let data: serde_json::Map<String, Value> =
            batches.iter().map(|b| (b.clone(), json!({ "do": "work", "ms": 5 }))).collect();
        let body =
            json!({ "projectId": "p", "batchIds": batches, "data": data, "priority": priority });
        let ids = mesh.post("/api/queue/enqueue", body).await?["jobIds"].clone();
        low = ids.as_array().unwrap().clone();
    }
    mesh.set("p", json!({ "paused": false })).await?;
    until_counts(&mesh, "p", "completed", 600).await?;
    let runs = receiver.all();
    let first = runs[..200].iter().filter(|run| low.contains(&json!(run.job))).count();
    println!("{first} of the first 200 starts were of the lowest class");
    assert!((14..=30).contains(&first), "{first} of 200");
    Ok(())
}

/// When both wait, a project of weight 3 has three starts for one of weight 1.
#[tokio::test(flavor = "multi_thread")]
async fn starts_are_shared_by_weight() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_CONCURRENCY", "4")])?;
    for (project, weight) in [("heavy", 3), ("light", 1)] {
        mesh.set(project, json!({ "paused": true, "weight": weight })).await?;
        enqueue(&mesh, project, 200, json!({ "do": "work", "ms": 5 })).await?;
    }
    for project in ["light", "heavy"] {
        mesh.set(project, json!({ "paused": false })).await?;
    }
    until_counts(&mesh, "light", "completed", 200).await?;
    let runs = receiver.all();
    let both = runs.iter().skip_while(|run| run.project == "light");
    let heavy = both.take(160).filter(|run| run.project == "heavy").count();
    println!("{heavy} of 160 starts were of weight 3");
    assert!((110..=130).contains(&heavy), "{heavy} of 160");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_names_its_handler_its_attempts_and_its_waits() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_HANDLERS", "")])?;
    mesh.set("posts", json!({ "handler": "http" })).await?;
    let answer = enqueue(&mesh, "posts", 1, json!({ "do": "done" })).await?;
    until_counts(&mesh, "posts", "completed", 1).await?;
    assert_eq!(receiver.runs(answer["jobIds"][0].as_str().unwrap()).len(), 1);
    mesh.set("odd", json!({ "handler": "nobody" })).await?;
    let answer = enqueue(&mesh, "odd", 1, json!({})).await?;
    until_counts(&mesh, "odd", "failed", 1).await?;
    let job = mesh.job(answer["jobIds"][0].as_str().unwrap()).await?;
    let error = job["error"].as_str().unwrap();
    assert!(error.contains("nobody") && error.contains("tokenize"), "{error}");
    // A change of attempts and waits reaches what is queued; a job's own number stays.
    mesh.set("posts", json!({ "paused": true })).await?;
    let fail = json!({ "do": "fail" });
    let by_project = enqueue(&mesh, "posts", 1, fail.clone()).await?["jobIds"][0].clone();
    let own = mesh
        .post(
            "/api/queue/enqueue",
            json!({
                "projectId": "posts", "batchId": "own", "data": fail, "maxAttempts": 2,
                "retry": { "baseMs": 700, "jitter": 0 },
            }),
        )
        .await?["jobId"]
        .clone();
    let retry = json!({ "baseMs": 1, "factor": 1, "capMs": 1 });
    mesh.set("posts", json!({ "paused": false, "maxAttempts": 5, "retry": retry })).await?;
    until_counts(&mesh, "posts", "failed", 2).await?;
    let runs = receiver.runs(by_project.as_str().unwrap());
    assert_eq!(runs.len(), 5);
    // The configuration's backoff would take at least 2.4 s, the project's 4 ms.
    let took = runs[4].at - runs[0].at;
    assert!(took < Duration::from_millis(2_000), "the project's waits hold: {took:?}");
    let runs = receiver.runs(own.as_str().unwrap());
    assert_eq!(runs.len(), 2);
    let waited = runs[1].at - runs[0].at;
    assert!(waited >= Duration::from_millis(700), "the job's own wait holds: {waited:?}");
    Ok(())
}

/// An ended job leaves the broker after the retention of its project; ClickHouse still knows it.
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_leaves_the_broker_after_its_projects_retention() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    mesh.set("brief", json!({ "retention": 1 })).await?;
    let brief = mesh.enqueue("brief", 1).await?.remove(0);
    let kept = mesh.enqueue("kept", 1).await?.remove(0);
    until("archived", async || {
        let job = mesh.job(&brief).await?;
        Ok(if job["archived"] == true { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    assert_eq!(mesh.job(&brief).await?["status"], "completed");
    assert_eq!(mesh.job(&kept).await?.get("archived"), None);
    let body = json!({ "projectId": "brief", "jobId": brief }).to_string();
    let (status, answer) = mesh.post_raw("/api/queue/retry", body).await?;
    assert_eq!((status, &answer["code"]), (409, &json!("archived")), "{answer}");
    Ok(())
}
