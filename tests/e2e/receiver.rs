//! The operator's own server, to which the handler `http` posts jobs. A job's `data.do` says
//! what it answers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::mesh::{Mesh, until};

/// A running receiver. Cheap to clone.
#[derive(Clone)]
pub struct Receiver {
    url: String,
    seen: Arc<Seen>,
    open: watch::Sender<bool>,
}

#[derive(Default)]
struct Seen {
    running: AtomicUsize,
    most_running: AtomicUsize,
    last_ended: Mutex<Option<Instant>>,
    runs: Mutex<Vec<Run>>,
}

/// One run that was posted.
#[derive(Clone, Debug)]
pub struct Run {
    pub job: String,
    pub run: u64,
    pub attempt: u64,
    pub project: String,
    /// The header of that name; empty without one.
    pub traceparent: String,
    pub at: Instant,
    /// How long it is since another run ended.
    pub since_an_end: Option<Duration>,
}

/// Counts a run for as long as it is answered.
struct Running(Arc<Seen>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.last_ended.lock().unwrap() = Some(Instant::now());
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Receiver {
    /// Starts a receiver whose jobs wait, where `data` says nothing, until it is opened.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let receiver = Self { url, seen: Arc::default(), open: watch::channel(false).0 };
        let router = Router::new().route("/", post(answer)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(receiver)
    }

    /// A mesh whose jobs of both types go to this receiver.
    pub fn mesh(&self, more: &[(&str, &str)]) -> anyhow::Result<Mesh> {
        let mut environment = vec![
            ("JOBMESH_HANDLERS", "process_batch=http,process_redo=http"),
            ("JOBMESH_HTTP_URL", &self.url),
            ("JOBMESH_RETRY_BASE_MS", "200"),
        ];
        environment.extend(more);
        Mesh::start_with(&environment)
    }

    /// Lets all jobs that wait end well, now and from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// How many jobs are being answered.
    pub fn running(&self) -> usize {
        self.seen.running.load(Ordering::SeqCst)
    }

    /// How many jobs were answered at once at most.
    pub fn most_running(&self) -> usize {
        self.seen.most_running.load(Ordering::SeqCst)
    }

    /// All runs so far, in the order of their starts.
    pub fn all(&self) -> Vec<Run> {
        self.seen.runs.lock().unwrap().clone()
    }

    /// Waits until exactly `count` jobs are being answered.
    pub async fn until_running(&self, count: usize) -> anyhow::Result<()> {
        until(&format!("{count} running"), async || {
            let n = self.running();
            Ok(if n == count { Ok(()) } else { Err(format!("{n} run")) })
        })
        .await
    }

    /// The runs of a job so far.
    pub fn runs(&self, job: &str) -> Vec<Run> {
        let runs = self.seen.runs.lock().unwrap();
        runs.iter().filter(|run| run.job == job).cloned().collect()
    }
}

async fn answer(
    State(receiver): State<Receiver>,
    headers: HeaderMap,
    Json(work): Json<Value>,
) -> Response {
    let running = receiver.seen.running.fetch_add(1, Ordering::SeqCst) + 1;
    receiver.seen.most_running.fetch_max(running, Ordering::SeqCst);
    let _running = Running(receiver.seen.clone());
    let attempt = work["attempt"].as_u64().unwrap_or(0);
    receiver.seen.runs.lock().unwrap().push(Run {
        job: work["job"].as_str().unwrap_or_default().to_owned(),
        run: work["run"].as_u64().unwrap_or(0),
        attempt,
        project: work["project"].as_str().unwrap_or_default().to_owned(),
        traceparent: headers
            .get("traceparent")
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        at: Instant::now(),
        since_an_end: receiver.seen.last_ended.lock().unwrap().map(|at| at.elapsed()),
    });
    let done = json!({
        "result": { "echo": work["data"] },
        "tokens": { "input": 10, "output": 3 },
        "model": "small",
    });
    match work["data"]["do"].as_str() {
        Some("done") => Json(done).into_response(),
        // Work of a length is what these jobs are made of: nothing waits for it.
        Some("work") => {
            let ms = work["data"]["ms"].as_u64().unwrap_or(20);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Json(done).into_response()
        }
        Some("reject") => (StatusCode::UNPROCESSABLE_ENTITY, "no such page").into_response(),
        Some("fail") => (StatusCode::BAD_GATEWAY, "try later").into_response(),
        Some("busy") if work["run"] == 1 => {
            (StatusCode::TOO_MANY_REQUESTS, [("Retry-After", "2")], "busy").into_response()
        }
        Some("busy") => Json(done).into_response(),
        Some("nonsense") => "{".into_response(),
        _ => {
            let _ = receiver.open.subscribe().wait_for(|open| *open).await;
            Json(done).into_response()
        }
    }
}
