//! A provider that asks to come back later: no attempt is used, nobody asks more often than it wants,
//! and everything completes afterwards.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use crate::mesh::{Mesh, until};

/// How long the provider asks for patience.
const BUSY: Duration = Duration::from_secs(12);
const JOBS: usize = 20;

/// A chat endpoint that is busy for a time; it notes when it was asked.
async fn provider(asked: Arc<Mutex<Vec<Instant>>>) -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    let begun = Instant::now();
    let answer = async move || -> Response {
        asked.lock().unwrap().push(Instant::now());
        if begun.elapsed() < BUSY {
            let later = [("Retry-After", "1")];
            return (StatusCode::TOO_MANY_REQUESTS, later, "slow down").into_response();
        }
        let choice = json!({ "message": { "content": "hello" }, "finish_reason": "stop" });
        Json(json!({ "choices": [choice], "usage": { "prompt_tokens": 3 } })).into_response()
    };
    let router = Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_says_later_costs_no_attempt_and_is_not_asked_more_often()
-> anyhow::Result<()> {
    let asked = Arc::default();
    // The provider is busy from the moment on at which the mesh can reach it.
    let mesh_url = provider(Arc::clone(&asked)).await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_LLM_URL", &mesh_url),
        ("JOBMESH_LLM_MODEL", "m"),
        ("JOBMESH_HANDLERS", "process_batch=llm"),
    ])?;
    let jobs = mesh.enqueue("p", JOBS).await?;
    until("deferred", async || {
        let job = mesh.job(&jobs[0]).await?;
        let shown = job["status"] == "queued"
            && job["attempts"] == 0
            && job["runAt"].is_string()
            && job["error"].as_str().is_some_and(|error| error.contains("slow down"));
        Ok(if shown { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    let path = format!("/api/queue/status/{}?history=true", jobs[0]);
    let (_, answer) = mesh.get(&path).await?;
    let history = answer["job"]["history"].as_array().unwrap().clone();
    let deferred = history.iter().find(|step| step["reason"] == "deferred");
    let deferred = deferred.unwrap_or_else(|| panic!("{history:?}"));
    assert!(deferred["runAt"].is_string() && deferred["error"].is_string(), "{deferred}");
    until("all completed", async || {
        let counts = mesh.counts("p").await?;
        assert_eq!(counts["failed"], 0, "{counts}");
        Ok(if counts["completed"] == JOBS { Ok(()) } else { Err(counts.to_string()) })
    })
    .await?;
    for job in &jobs {
        assert_eq!(mesh.job(job).await?["attempts"], 1);
    }
    // What was under way when the first answer came had been asked already. From then on one question
    // at a time finds out whether the provider has time again.
    let asked = asked.lock().unwrap();
    let first = asked[0];
    let times: Vec<Duration> = asked.iter().map(|at| at.duration_since(first)).collect();
    let busy: Vec<Duration> = times.iter().copied().filter(|at| *at < BUSY / 2).collect();
    let settled: Vec<&Duration> =
        busy.iter().skip_while(|at| **at < Duration::from_millis(900)).collect();
    println!("{} questions while busy, {} of them at once", busy.len(), busy.len() - settled.len());
    assert!(settled.len() >= 3, "{busy:?}");
    for two in settled.windows(2) {
        assert!(*two[1] - *two[0] >= Duration::from_millis(950), "{busy:?}");
    }
    Ok(())
}

/// A job that has been deferred for as long as its project allows fails, with the provider's words.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_not_deferred_for_ever() -> anyhow::Result<()> {
    let url = provider(Arc::default()).await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_LLM_URL", &url),
        ("JOBMESH_LLM_MODEL", "m"),
        ("JOBMESH_HANDLERS", "process_batch=llm"),
    ])?;
    let settings = mesh.set("p", json!({ "maxDeferral": 2 })).await?;
    assert_eq!(settings["maxDeferral"], 2);
    let job = mesh.enqueue("p", 1).await?.remove(0);
    let mut last = Value::Null;
    until("failed", async || {
        last = mesh.job(&job).await?;
        Ok(if last["status"] == "failed" { Ok(()) } else { Err(last.to_string()) })
    })
    .await?;
    let error = last["error"].as_str().unwrap();
    assert!(error.contains("deferred for too long") && error.contains("slow down"), "{error}");
    Ok(())
}
