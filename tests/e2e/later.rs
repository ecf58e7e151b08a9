//! A provider that asks to be called later: no attempt is used, requests do not come earlier than
//! it asks for, and everything completes afterwards.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
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

/// What a server answers the first time it is asked, and how long it then waits in vain.
struct Patience {
    name: &'static str,
    status: StatusCode,
    header: &'static str,
    value: String,
    at_least: Duration,
}

impl Patience {
    fn all() -> Vec<Self> {
        let in_4_s = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4));
        let case = |name, code: u16, header, value: &str, at_least_ms| Self {
            name,
            status: StatusCode::from_u16(code).expect("it is a status"),
            header,
            value: value.to_owned(),
            at_least: Duration::from_millis(at_least_ms),
        };
        vec![
            case("a-fraction", 429, "retry-after", "1.5", 1_500),
            case("milliseconds", 429, "retry-after-ms", "1500", 1_500),
            case("a-date", 503, "retry-after", &in_4_s, 0),
            case("much-later", 503, "retry-after", "99999999999", 0),
        ]
    }
}

/// A server for jobs, prompts and webhooks alike. It notes the bodies that it is sent, and when.
async fn patient(asked: Arc<Mutex<Vec<(Instant, String)>>>) -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let cases = Arc::new(Patience::all());
    let answer = move |body: String| {
        let (cases, asked) = (cases.clone(), asked.clone());
        async move { answer_later(&cases, &asked, body) }
    };
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

fn answer_later(
    cases: &[Patience],
    asked: &Mutex<Vec<(Instant, String)>>,
    body: String,
) -> Response {
    let case = cases.iter().find(|case| body.contains(case.name)).expect("each body names one");
    let mut asked = asked.lock().unwrap();
    let is_first = !asked.iter().any(|(_, body)| body.contains(case.name));
    asked.push((Instant::now(), body));
    if is_first {
        return (case.status, [(case.header, case.value.clone())], "later").into_response();
    }
    let choice = json!({ "message": { "content": "hello" }, "finish_reason": "stop" });
    Json(json!({ "choices": [choice] })).into_response()
}

/// Each way to ask for patience, of a model's endpoint, of a server of jobs and of a webhook's receiver. A deferral holds
/// back its project, so each has one.
#[tokio::test(flavor = "multi_thread")]
async fn every_handler_waits_as_it_is_asked_to() -> anyhow::Result<()> {
    let [models, jobs, hooks] = [(); 3].map(|()| Arc::<Mutex<Vec<(Instant, String)>>>::default());
    let begun = SystemTime::now();
    let llm_url = patient(models.clone()).await?;
    let http_url = patient(jobs.clone()).await?;
    let hook_url = patient(hooks.clone()).await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_LLM_URL", &llm_url),
        ("JOBMESH_LLM_MODEL", "m"),
        ("JOBMESH_LLM_MAX_TOKENS_FIELD", "max_tokens"),
        ("JOBMESH_HTTP_URL", &http_url),
        ("JOBMESH_WEBHOOK_PRIVATE", "true"),
    ])?;
    let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let mut ids = HashMap::new();
    for case in Patience::all() {
        for (handler, settings) in [
            ("llm", json!({ "handler": "llm", "options": { "maxTokens": 7 } })),
            ("http", json!({ "handler": "http" })),
            (
                "noop",
                json!({ "handler": "noop", "webhook": { "url": hook_url, "secret": secret } }),
            ),
        ] {
            let project = format!("{handler}-{}", case.name);
            mesh.set(&project, settings).await?;
            let data = json!({ "text": case.name });
            let body = json!({ "projectId": project, "batchId": case.name, "data": data });
            let answer = mesh.post("/api/queue/enqueue", body).await?;
            ids.insert(project, answer["jobId"].as_str().unwrap().to_owned());
        }
    }
    let times = |asked: &Mutex<Vec<(Instant, String)>>, name: &str| -> Vec<Instant> {
        let asked = asked.lock().unwrap();
        asked.iter().filter(|(_, body)| body.contains(name)).map(|(at, _)| *at).collect()
    };
    for case in Patience::all() {
        for (what, asked) in [("llm", &models), ("http", &jobs), ("webhook", &hooks)] {
            let often = if case.name == "much-later" { 1 } else { 2 };
            until(&format!("{what}, {}", case.name), async || {
                let found = times(asked, case.name).len();
                Ok(if found == often { Ok(()) } else { Err(format!("asked {found} times")) })
            })
            .await?;
            let times = times(asked, case.name);
            if let [first, second] = times[..] {
                assert!(second - first >= case.at_least, "{what}, {}", case.name);
            }
        }
    }
    // A date has whole seconds: 4 s are 3 at least.
    assert!(begun.elapsed()? >= Duration::from_secs(3));
    for handler in ["llm", "http"] {
        let job = mesh.job(&ids[&format!("{handler}-much-later")]).await?;
        // A day is the most.
        let query = format!(
            "SELECT dateDiff('hour', now(), parseDateTimeBestEffort('{}'))",
            job["runAt"].as_str().unwrap()
        );
        assert!(["23", "24"].contains(&mesh.sql(&query).await?.as_str()), "{job}");
    }
    let models = models.lock().unwrap();
    assert!(models.iter().all(|(_, body)| body.contains(r#""max_tokens":7"#)), "{models:?}");
    Ok(())
}
