//! Results of every size: small ones are kept with their job, large ones in a store.

use axum::{Json, Router, routing::post};
use serde_json::{Value, json};

use crate::mesh::{Mesh, until};

/// A handler that returns a text as long as the job wants.
async fn handler() -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let answer = async |Json(work): Json<Value>| {
        let bytes = usize::try_from(work["data"]["bytes"].as_u64().unwrap()).unwrap();
        Json(json!({ "result": "x".repeat(bytes), "tokens": { "input": 1, "output": 2 } }))
    };
    let router = Router::new().route("/", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

async fn ended(mesh: &Mesh, batch: &str, bytes: usize) -> anyhow::Result<Value> {
    let data = json!({ "bytes": bytes });
    let body = json!({ "projectId": "p", "batchId": batch, "data": data });
    let id = mesh.post("/api/queue/enqueue", body).await?["jobId"].clone();
    let path = format!("/api/queue/status/{}?wait=60s", id.as_str().unwrap());
    Ok(mesh.get(&path).await?.1["job"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_up_to_sixteen_megabytes_can_be_read() -> anyhow::Result<()> {
    let url = handler().await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_HANDLERS", "process_batch=http"),
        ("JOBMESH_HTTP_URL", &url),
    ])?;
    let small = ended(&mesh, "small", 1_000).await?;
    assert_eq!(small["result"].as_str().map(str::len), Some(1_000));
    assert!(small["resultUrl"].is_null(), "{small}");
    for bytes in [1_000, 256 * 1024 - 2, 256 * 1024, 15 << 20] {
        let job = ended(&mesh, &format!("b{bytes}"), bytes).await?;
        assert_eq!((&job["status"], &job["tokens"]["output"]), (&json!("completed"), &json!(2)));
        let is_stored = bytes + 2 > 256 * 1024;
        assert_eq!(job["result"].is_null(), is_stored, "{bytes}");
        let path = format!("/api/queue/jobs/{}/result", job["id"].as_str().unwrap());
        if is_stored {
            assert_eq!((&job["resultUrl"], &job["resultBytes"]), (&json!(path), &json!(bytes + 2)));
        }
        let mut answer = mesh.follow(&path).await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        assert_eq!(body.len(), bytes + 2);
        assert!(body[1..=bytes].iter().all(|byte| *byte == b'x'));
    }
    let beyond = ended(&mesh, "beyond", (16 << 20) + 1_000).await?;
    assert_eq!((&beyond["status"], &beyond["attempts"]), (&json!("failed"), &json!(1)));
    let error = beyond["error"].as_str().unwrap();
    assert!(error.contains("16777216") && error.contains("xxxx"), "{error}");
    let path = format!("/api/queue/jobs/{}/result", beyond["id"].as_str().unwrap());
    let (status, answer) = mesh.get(&path).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("result_not_found")), "{answer}");
    let unknown = "/api/queue/jobs/01890a5d-ac96-774b-bcce-b302099a8057/result";
    let (status, answer) = mesh.get(unknown).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("job_not_found")), "{answer}");
    Ok(())
}

/// A stored result is there for as long as its job is.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_result_goes_with_its_job() -> anyhow::Result<()> {
    let url = handler().await?;
    let mesh = Mesh::start_with(&[
        ("JOBMESH_HANDLERS", "process_batch=http"),
        ("JOBMESH_HTTP_URL", &url),
    ])?;
    mesh.set("p", json!({ "retention": 3 })).await?;
    let job = ended(&mesh, "b", 300_000).await?;
    let path = format!("/api/queue/jobs/{}/result", job["id"].as_str().unwrap());
    assert_eq!(mesh.get(&path).await?.0, 200);
    until("expired", async || {
        let (status, answer) = mesh.get(&path).await?;
        Ok(if status == 404 { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await
}
