//! The handlers `command` and `llm`, and the progress of a run.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use crate::mesh::{Mesh, is_alive, until};

async fn ended(mesh: &Mesh, id: &Value) -> anyhow::Result<Value> {
    let path = format!("/api/queue/status/{}?wait=60s", id.as_str().unwrap());
    Ok(mesh.get(&path).await?.1["job"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_run_for_a_job_shows_its_progress_and_dies_with_its_run() -> anyhow::Result<()>
{
    let dir = tempfile::TempDir::new()?;
    let program = dir.path().join("work.py");
    std::fs::write(
        &program,
        r#"
import json, os, subprocess, sys, time
job = json.load(sys.stdin)
data = job["data"]
print(json.dumps({"progress": {"page": 1, "of": 3}}), flush=True)
if data["do"] == "hang":
    child = subprocess.Popen(["sleep", "1000"])
    open(data["file"] + ".new", "w").write(f"{os.getpid()} {child.pid}")
    os.rename(data["file"] + ".new", data["file"])
    time.sleep(1000)
print(json.dumps({"result": {"length": len(data["text"])}, "tokens": {"input": 7, "output": 1}}))
"#,
    )?;
    let command = format!("python3 {}", program.display());
    let handlers = "process_batch=command";
    let mesh = Mesh::start_with(&[("JOBMESH_HANDLERS", handlers), ("JOBMESH_COMMAND", &command)])?;
    let body =
        json!({ "projectId": "p", "batchId": "b", "data": { "do": "count", "text": "four" } });
    let job = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let job = ended(&mesh, &job).await?;
    assert_eq!((&job["status"], &job["result"]), (&json!("completed"), &json!({ "length": 4 })));
    assert_eq!(job["tokens"], json!({ "input": 7, "output": 1 }));
    let file = dir.path().join("ids");
    let data = json!({ "do": "hang", "file": file.display().to_string() });
    let mut events = mesh.follow("/api/queue/events?projectId=p").await?;
    let body = json!({ "projectId": "p", "batchId": "hangs", "data": data });
    let id = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    until("in progress", async || {
        let job = mesh.job(id.as_str().unwrap()).await?;
        let shown = job["progress"] == json!({ "page": 1, "of": 3 });
        Ok(if shown && file.exists() { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    let mut heard = String::new();
    while !heard.replace(' ', "").contains("\"progress\":{\"page\":1,\"of\":3}") {
        let chunk = tokio::time::timeout(crate::mesh::PATIENCE, events.chunk()).await??;
        heard.push_str(std::str::from_utf8(&chunk.expect("the stream goes on"))?);
    }
    let ids = std::fs::read_to_string(&file)?;
    let ids: Vec<u32> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
    assert!(ids.iter().all(|id| is_alive(*id)));
    let cancel = json!({ "projectId": "p", "batchIds": ["hangs"] });
    assert_eq!(mesh.post("/api/queue/cancel", cancel).await?["canceledCount"], 1);
    until("dead, with its child", async || {
        let alive: Vec<u32> = ids.iter().copied().filter(|id| is_alive(*id)).collect();
        Ok(if alive.is_empty() { Ok(()) } else { Err(format!("{alive:?} live")) })
    })
    .await
}

/// A killed processor takes its programs with it: the next run is alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_processor_leaves_no_program_behind() -> anyhow::Result<()> {
    let dir = tempfile::TempDir::new()?;
    let file = dir.path().join("pids");
    // The program, a child of it, and one in a session of its own.
    let command = format!(
        "echo $$ >> {0}; sleep 1000 & echo $! >> {0}; \
         setsid sh -c 'echo $$ >> {0}; exec sleep 1000' & wait",
        file.display()
    );
    let handlers = "process_batch=command";
    let mesh = Mesh::start_with(&[("JOBMESH_HANDLERS", handlers), ("JOBMESH_COMMAND", &command)])?;
    mesh.enqueue("p", 1).await?;
    let pids = || -> Vec<u32> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    until("running", async || {
        let found = pids();
        Ok(if found.len() == 3 { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await?;
    let first = pids();
    mesh.signal("processor", libc::SIGKILL)?;
    until("running again", async || {
        let found = pids();
        Ok(if found.len() == 6 { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await?;
    let left: Vec<u32> = first.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?} run during the next run");
    mesh.post("/api/queue/cancel", json!({ "projectId": "p" })).await?;
    until("gone", async || {
        let left: Vec<u32> = pids().into_iter().filter(|pid| is_alive(*pid)).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?} live")) })
    })
    .await
}

/// Progress that a program reports before the start of its run is stored is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn progress_that_is_said_at_once_is_shown() -> anyhow::Result<()> {
    let command = r#"echo "{\"progress\":1}"; exec sleep 1000"#;
    let handlers = "process_batch=command";
    let mesh = Mesh::start_with(&[("JOBMESH_HANDLERS", handlers), ("JOBMESH_COMMAND", command)])?;
    for job in mesh.enqueue("p", 8).await? {
        until("in progress", async || {
            let job = mesh.job(&job).await?;
            Ok(if job["progress"] == 1 { Ok(()) } else { Err(job.to_string()) })
        })
        .await?;
    }
    mesh.post("/api/queue/cancel", json!({ "projectId": "p" })).await?;
    Ok(())
}

/// The secrets of a processor are not those of its programs.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_not_given_the_key_of_the_model() -> anyhow::Result<()> {
    let command = r#"printf '{"result":"%s,%s"}' "$JOBMESH_LLM_KEY" "$JOBMESH_RUN""#;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_HANDLERS", "process_batch=command"),
        ("JOBMESH_COMMAND", command),
        ("JOBMESH_LLM_KEY", "sk-very-secret-7"),
        ("JOBMESH_LLM_URL", "http://127.0.0.1:9/v1"),
    ])?;
    let job = mesh.enqueue("p", 1).await?.remove(0);
    assert_eq!(ended(&mesh, &json!(job)).await?["result"], ",1");
    Ok(())
}

type Asked = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// A server that speaks as a chat endpoint does.
async fn model(asked: Asked) -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    let answer = async move |headers: HeaderMap, Json(body): Json<Value>| -> Response {
        let mut asked = asked.lock().unwrap();
        asked.push((headers, body.clone()));
        if asked.len() == 1 {
            let later = [("Retry-After", "1")];
            return (StatusCode::TOO_MANY_REQUESTS, later, "slow down").into_response();
        }
        let content = match body["response_format"]["type"].as_str() {
            Some("json_schema") => r#"{"total": 42}"#,
            _ => "forty-two",
        };
        Json(json!({
            "model": "tiny-1", "choices": [{ "message": { "content": content }, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 11, "completion_tokens": 4 },
        }))
        .into_response()
    };
    let router = Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_language_model_is_asked_what_the_project_says_about_the_jobs_data() -> anyhow::Result<()>
{
    const KEY: &str = "sk-very-secret-7";
    let asked = Asked::default();
    let url = model(asked.clone()).await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_LLM_URL", &url),
        ("JOBMESH_LLM_KEY", KEY),
        ("JOBMESH_LLM_MODEL", "default-model"),
    ])?;
    let schema = json!({ "type": "object", "properties": { "total": { "type": "integer" } } });
    let options =
        json!({ "prompt": "Sum up {{text}}", "system": "You are short.", "schema": schema });
    mesh.set("p", json!({ "handler": "llm", "options": options })).await?;
    let data = json!({ "text": "the bill", "images": ["data:image/png;base64,iVBORw0KGgo="] });
    let body = json!({ "projectId": "p", "batchId": "b", "data": data });
    let job = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let job = ended(&mesh, &job).await?;
    assert_eq!(
        (&job["status"], &job["result"]),
        (&json!("completed"), &json!({ "total": 42 })),
        "{job}"
    );
    assert_eq!((&job["attempts"], &job["model"]), (&json!(1), &json!("tiny-1")));
    assert_eq!(job["tokens"], json!({ "input": 11, "output": 4 }));
    mesh.set("p", json!({ "options": { "model": "other", "prompt": "Say {{text}}" } })).await?;
    let body = json!({ "projectId": "p", "batchId": "c", "data": { "text": "it" } });
    let plain = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    assert_eq!(ended(&mesh, &plain).await?["result"], "forty-two");
    let body = json!({ "projectId": "p", "batchId": "d", "data": {} });
    let lacks = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let lacks = ended(&mesh, &lacks).await?;
    assert_eq!((&lacks["status"], &lacks["attempts"]), (&json!("failed"), &json!(1)));
    assert!(lacks["error"].as_str().unwrap().contains("text"), "{lacks}");
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 3);
    for (headers, _) in asked.iter() {
        assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
    }
    let (_, first) = &asked[0];
    assert_eq!(first["model"], "default-model");
    assert_eq!(first["messages"][0], json!({ "role": "system", "content": "You are short." }));
    assert_eq!(first["messages"][1]["content"][0]["text"], "Sum up the bill");
    let image = &first["messages"][1]["content"][1]["image_url"]["url"];
    assert_eq!(image, "data:image/png;base64,iVBORw0KGgo=");
    assert_eq!(asked[2].1["model"], "other");
    assert_eq!(asked[2].1["messages"], json!([{ "role": "user", "content": "Say it" }]));
    assert!(!mesh.logs().contains(KEY), "the key is in a log");
    Ok(())
}
