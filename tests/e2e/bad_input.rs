//! Every endpoint with bad input: a clear error that names the field, and nothing half done.

use serde_json::{Value, json};

use crate::mesh::Mesh;

/// Path, body, expected status, expected code, what the error must name.
type Case = (&'static str, String, u16, &'static str, &'static str);

fn enqueue_cases() -> Vec<Case> {
    let path = "/api/queue/enqueue";
    let case = |body: Value, code, names| (path, body.to_string(), 400, code, names);
    let raw = |body: &str, code, names| (path, body.to_owned(), 400, code, names);
    let long = "x".repeat(129);
    let huge = json!({ "text": "x".repeat(256 * 1024) });
    let many: Vec<String> = (0..10_001).map(|n| n.to_string()).collect();
    vec![
        raw("", "malformed_json", "JSON object"),
        raw("[]", "malformed_json", "JSON object"),
        raw("null", "malformed_json", "JSON object"),
        raw("\"text\"", "malformed_json", "JSON object"),
        raw("{", "malformed_json", "JSON"),
        raw("{\"projectId\":\"p\",}", "malformed_json", "JSON"),
        raw("{\"projectId\":\"p\",\"batchId\":\"b\"} x", "malformed_json", "behind"),
        raw("{\"projectId\":\"p\",\"projectId\":\"p\"}", "invalid_field", "projectId"),
        raw("{\"projectId\":\"\\ud800\"}", "malformed_json", "JSON"),
        case(json!({}), "missing_field", "projectId"),
        case(json!({ "projectId": null, "batchId": "b" }), "missing_field", "projectId"),
        case(json!({ "projectId": 5, "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": ["p"], "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": "", "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": long, "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": "a\nb", "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": "a\u{0}b", "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": "a\u{202e}b", "batchId": "b" }), "invalid_field", "projectId"),
        case(json!({ "projectId": "p" }), "missing_field", "batchId"),
        case(json!({ "projectId": "p", "batchId": 7 }), "invalid_field", "batchId"),
        case(json!({ "projectId": "p", "batchId": "" }), "invalid_field", "batchId"),
        case(json!({ "projectId": "p", "batchId": "x".repeat(129) }), "invalid_field", "batchId"),
        case(json!({ "projectId": "p", "batchIds": [] }), "invalid_field", "batchIds"),
        case(json!({ "projectId": "p", "batchIds": "b" }), "invalid_field", "batchIds"),
        case(json!({ "projectId": "p", "batchIds": [1] }), "invalid_field", "batchIds[0]"),
        case(json!({ "projectId": "p", "batchIds": ["b", ""] }), "invalid_field", "batchIds[1]"),
        case(json!({ "projectId": "p", "batchIds": ["b", null] }), "invalid_field", "batchIds[1]"),
        case(
            json!({ "projectId": "p", "batchId": "b", "priority": "1" }),
            "invalid_field",
            "priority",
        ),
        case(
            json!({ "projectId": "p", "batchId": "b", "priority": -1 }),
            "invalid_field",
            "priority",
        ),
        case(
            json!({ "projectId": "p", "batchId": "b", "priority": 1001 }),
            "invalid_field",
            "priority",
        ),
        case(
            json!({ "projectId": "p", "batchId": "b", "priority": 1.5 }),
            "invalid_field",
            "priority",
        ),
        case(json!({ "projectId": "p", "batchId": "b", "data": [] }), "invalid_field", "data"),
        case(json!({ "projectId": "p", "batchId": "b", "data": "x" }), "invalid_field", "data"),
        case(
            json!({ "projectId": "p", "batchIds": ["b"], "data": { "c": {} } }),
            "invalid_field",
            "\"c\"",
        ),
        case(
            json!({ "projectId": "p", "batchIds": ["b"], "data": { "b": 1 } }),
            "invalid_field",
            "\"b\"",
        ),
        case(
            json!({ "projectId": "p", "batchId": "b", "runAt": "soon" }),
            "invalid_field",
            "runAt",
        ),
        case(json!({ "projectId": "p", "batchId": "b", "runAt": 5 }), "invalid_field", "runAt"),
        case(
            json!({ "projectId": "p", "batchId": "b", "maxAttempts": 0 }),
            "invalid_field",
            "maxAttempts",
        ),
        case(
            json!({ "projectId": "p", "batchId": "b", "maxAttempts": 101 }),
            "invalid_field",
            "maxAttempts",
        ),
        case(json!({ "projectId": "p", "batchId": "b", "type": "other" }), "invalid_field", "type"),
        case(json!({ "projectId": "p", "batchId": "b", "color": "red" }), "invalid_field", "color"),
        (
            path,
            json!({ "projectId": "p", "batchId": "b", "data": huge }).to_string(),
            413,
            "too_large",
            "data",
        ),
        (
            path,
            json!({ "projectId": "p", "batchIds": many }).to_string(),
            413,
            "too_large",
            "batchIds",
        ),
        (path, format!("{{\"projectId\":\"{}\"}}", "x".repeat(5 << 20)), 413, "too_large", "bytes"),
    ]
}

fn other_cases() -> Vec<Case> {
    let case = |path, body: Value, code, names| (path, body.to_string(), 400, code, names);
    let (redo, cancel, retry) = ("/api/queue/redo", "/api/queue/cancel", "/api/queue/retry");
    let row = |name: &str, value: Value| {
        let mut body = json!({ "projectId": "p", "batchId": "b", "rowIndex": 0,
            "redoColumnIds": ["c"], "croppedImageIds": { "c": "i" } });
        body[name] = value;
        body
    };
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    vec![
        case(redo, json!({}), "missing_field", "projectId"),
        case(redo, row("batchId", Value::Null), "missing_field", "batchId"),
        case(redo, row("rowIndex", Value::Null), "missing_field", "rowIndex"),
        case(redo, row("rowIndex", json!(-1)), "invalid_field", "rowIndex"),
        case(redo, row("rowIndex", json!("0")), "invalid_field", "rowIndex"),
        case(redo, row("redoColumnIds", Value::Null), "missing_field", "redoColumnIds"),
        case(redo, row("redoColumnIds", json!([])), "invalid_field", "redoColumnIds"),
        case(redo, row("redoColumnIds", json!([3])), "invalid_field", "redoColumnIds[0]"),
        case(redo, row("croppedImageIds", Value::Null), "missing_field", "croppedImageIds"),
        case(redo, row("croppedImageIds", json!({ "c": 1 })), "invalid_field", "croppedImageIds.c"),
        case(redo, row("sourceImageIds", json!([])), "invalid_field", "sourceImageIds"),
        case(redo, row("data", json!({})), "invalid_field", "data"),
        case(cancel, json!({}), "missing_field", "projectId"),
        case(cancel, json!({ "projectId": "p", "batchIds": [] }), "invalid_field", "batchIds"),
        case(cancel, json!({ "projectId": "p", "batchIds": [""] }), "invalid_field", "batchIds[0]"),
        case(cancel, json!({ "projectId": "p", "batchId": "b" }), "invalid_field", "batchId"),
        case(retry, json!({ "projectId": "p" }), "missing_field", "jobId"),
        case(retry, json!({ "projectId": "p", "retryAll": false }), "missing_field", "jobId"),
        case(retry, json!({ "projectId": "p", "retryAll": "yes" }), "invalid_field", "retryAll"),
        case(retry, json!({ "projectId": "p", "jobId": "x" }), "invalid_field", "jobId"),
        case(
            retry,
            json!({ "projectId": "p", "jobId": unknown, "retryAll": true }),
            "invalid_field",
            "retryAll",
        ),
        (
            retry,
            json!({ "projectId": "p", "jobId": unknown }).to_string(),
            404,
            "job_not_found",
            unknown,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_by_name_and_changes_nothing() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let cases: Vec<Case> = enqueue_cases().into_iter().chain(other_cases()).collect();
    assert!(cases.len() >= 60);
    for (path, body, status, code, names) in cases {
        let (found, answer) = mesh.post_raw(path, body.clone()).await?;
        let shown: String = body.chars().take(200).collect();
        assert_eq!(found, status, "{path} {shown}: {answer}");
        assert_eq!(answer["success"], false);
        assert_eq!(answer["code"], code, "{path} {shown}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(names), "{path} {shown}: {answer}");
    }
    let gets = [
        ("/api/queue/status/x", 400, "invalid_field"),
        ("/api/queue/status/%ff", 400, "invalid_field"),
        ("/api/queue/status/%3E", 400, "invalid_field"),
        ("/api/queue/status/01890a5d-ac96-774b-bcce-b302099a8057", 404, "job_not_found"),
        ("/api/queue/status/01890a5d-ac96-774b-bcce-b302099a8057?x=1", 400, "invalid_field"),
        ("/api/queue/stats?projectId=", 400, "invalid_field"),
        ("/api/queue/stats?project=p", 400, "invalid_field"),
        ("/api/queue/metrics?timeRange=1h", 400, "invalid_field"),
        ("/api/queue/metrics?timeRange=7d&timeRange=7d", 400, "invalid_field"),
        ("/api/queue/nothing", 404, "no_such_endpoint"),
        ("/api/queue/enqueue", 405, "method_not_allowed"),
    ];
    for (path, status, code) in gets {
        let (found, answer) = mesh.get(path).await?;
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{path}: {answer}");
    }
    let (_, stats) = mesh.get("/api/queue/stats").await?;
    assert_eq!(stats["queue"]["totalJobs"], 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_ids_are_ids_like_any_other() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let long = "é".repeat(64);
    let ids = [
        "a.b",
        "*",
        ">",
        "a b",
        " ",
        "\u{1f980}",
        "$JS.API.>",
        "x-61",
        "'; DROP",
        "\"",
        "\\",
        &long,
    ];
    for id in ids {
        let body = json!({ "projectId": id, "batchId": id });
        let answer = mesh.post("/api/queue/enqueue", body).await?;
        let job = answer["jobId"].as_str().unwrap().to_owned();
        crate::mesh::until("completed", async || {
            let job = mesh.job(&job).await?;
            let done =
                job["status"] == "completed" && job["projectId"] == id && job["batchId"] == id;
            Ok(if done { Ok(()) } else { Err(job.to_string()) })
        })
        .await?;
    }
    let (_, stats) = mesh.get("/api/queue/stats?projectId=%3E").await?;
    assert_eq!(stats["queue"]["totalJobs"], 1, "{stats}");
    let (_, stats) = mesh.get("/api/queue/stats").await?;
    assert_eq!(stats["queue"]["completed"], ids.len());
    Ok(())
}
