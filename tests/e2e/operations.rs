//! Operations change what their dry runs count, whatever crashes. They show their progress and can be aborted, by the keys that may see them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    bulk::{JOBS, enqueue_many, until_count},
    keys::{ask, create},
    mesh::{Mesh, until},
    receiver::Receiver,
};

const PATH: &str = "/api/queue/operations";

/// What an operation would change.
async fn dry_run(mesh: &Mesh, action: &str, filter: &Value) -> anyhow::Result<Value> {
    let body = json!({ "action": action, "filter": filter, "dryRun": true });
    Ok(mesh.post(PATH, body).await?["dryRun"].clone())
}

/// Starts an operation; returns its id.
async fn start(mesh: &Mesh, body: Value) -> anyhow::Result<String> {
    let answer = mesh.post(PATH, body).await?;
    Ok(answer["operation"]["operationId"].as_str().expect("its id").to_owned())
}

async fn until_finished(mesh: &Mesh, id: &str) -> anyhow::Result<Value> {
    let mut operation = Value::Null;
    until("finished", async || {
        let (status, answer) = mesh.get(&format!("{PATH}/{id}")).await?;
        operation = answer["operation"].clone();
        let is_finished = status == 200 && operation["status"] == "finished";
        Ok(if is_finished { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    Ok(operation)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dry_run_counts_is_changed_whatever_crashes() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    for project in ["p", "q"] {
        mesh.set(project, json!({ "handler": "missing", "maxAttempts": 1 })).await?;
        enqueue_many(&mesh, project, JOBS).await?;
    }
    for project in ["p", "q"] {
        until_count(&mesh, project, "failed", JOBS).await?;
        mesh.set(project, json!({ "paused": true })).await?;
    }
    enqueue_many(&mesh, "idle", 3).await?;
    let (_, failures) = mesh.get("/api/queue/failures?projectId=p").await?;
    let group = failures["groups"][0]["errorGroup"].as_str().expect("a group").to_owned();
    let filter = json!({ "errorGroup": group });
    let counted = dry_run(&mesh, "retry", &filter).await?;
    assert_eq!(counted["jobs"], 2 * JOBS, "{counted}");
    let counts = counted["counts"].as_array().expect("counts");
    let of_project =
        |project: &str| json!({ "projectId": project, "status": "failed", "jobs": JOBS });
    assert!(counts.contains(&of_project("p")) && counts.contains(&of_project("q")), "{counted}");
    assert_eq!(counted["samples"].as_array().map(Vec::len), Some(5), "{counted}");
    assert_eq!(dry_run(&mesh, "cancel", &json!({ "projectId": "p" })).await?["jobs"], 0);

    // Another state service leads in the middle of it.
    let retry = json!({ "action": "retry", "filter": filter, "allProjects": true,
        "reason": "the handler is there" });
    let id = start(&mesh, retry).await?;
    until("begun", async || {
        let queued = mesh.counts("p").await?["queued"].as_u64().unwrap_or(0);
        Ok(if queued > 0 { Ok(()) } else { Err("none is queued".to_owned()) })
    })
    .await?;
    mesh.signal("state", libc::SIGKILL)?;
    let operation = until_finished(&mesh, &id).await?;
    let found = ["changed", "skipped", "lookedAt", "candidates"].map(|name| &operation[name]);
    let all = json!(2 * JOBS);
    assert_eq!(found, [&all, &json!(0), &all, &all], "{operation}");
    assert_eq!(operation["reason"], "the handler is there");
    until_count(&mesh, "p", "queued", JOBS).await?;
    until_count(&mesh, "q", "queued", JOBS).await?;

    // One batch, named jobs, and a status: no other job changes.
    let (_, page) = mesh.get("/api/queue/jobs?projectId=q&limit=2").await?;
    let ids: Vec<&Value> =
        page["jobs"].as_array().into_iter().flatten().map(|job| &job["id"]).collect();
    for (filter, expected) in [
        (json!({ "projectId": "p", "batchId": "b7" }), 1),
        (json!({ "projectId": "p", "batchId": "b7" }), 0),
        (json!({ "projectIds": ["p", "q"], "jobIds": ids }), 2),
        (json!({ "projectId": "q", "status": "processing" }), 0),
        (json!({ "projectId": "q", "createdBefore": "2020-01-01T00:00:00Z" }), 0),
        (json!({ "projectId": "q", "type": "process_batch" }), JOBS - 2),
    ] {
        assert_eq!(dry_run(&mesh, "cancel", &filter).await?["jobs"], expected, "{filter}");
        let id = start(&mesh, json!({ "action": "cancel", "filter": filter })).await?;
        assert_eq!(until_finished(&mesh, &id).await?["changed"], expected, "{filter}");
    }
    until_count(&mesh, "p", "queued", JOBS - 1).await?;
    // A repeat under the same key starts nothing.
    let cancel = json!({ "action": "cancel", "filter": { "projectId": "p" } }).to_string();
    let mut started = Vec::new();
    for _ in 0..2 {
        let (status, answer) = mesh.post_keyed(PATH, cancel.clone(), Some("key")).await?;
        assert_eq!(status, 200, "{answer}");
        started.push(answer["operation"]["operationId"].clone());
    }
    assert_eq!(started[0], started[1]);
    until_count(&mesh, "p", "queued", 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_priority_decides_which_queued_job_is_next() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    mesh.set("p", json!({ "paused": true, "maxConcurrency": 1 })).await?;
    let mut jobs = Vec::new();
    for batch in ["first", "second", "third"] {
        let body = json!({ "projectId": "p", "batchId": batch, "data": { "do": "done" } });
        let answer = mesh.post("/api/queue/enqueue", body).await?;
        jobs.push(answer["jobId"].as_str().expect("its id").to_owned());
    }
    let urgent = json!({ "action": "setPriority", "priority": 2,
        "filter": { "projectId": "p", "jobIds": [jobs[2]] } });
    let id = start(&mesh, urgent).await?;
    assert_eq!(until_finished(&mesh, &id).await?["changed"], 1);
    assert_eq!(mesh.job(&jobs[2]).await?["priority"], 2);
    // One job alone.
    let client = reqwest::Client::builder().no_proxy().build()?;
    let patch = async |job: &str, change: Value| {
        let answer = client.patch(mesh.url(&format!("/api/queue/jobs/{job}"))).json(&change);
        let answer = answer.send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.json::<Value>().await?))
    };
    let later = "2999-01-01T00:00:00Z";
    let (status, answer) = patch(&jobs[1], json!({ "priority": 7, "runAt": later })).await?;
    assert_eq!(status, 200, "{answer}");
    let job = mesh.job(&jobs[1]).await?;
    assert_eq!((&job["priority"], &job["runAt"]), (&json!(7), &json!("2999-01-01T00:00:00.000Z")));
    assert_eq!(mesh.counts("p").await?["scheduled"], 1);
    assert_eq!(patch(&jobs[1], json!({ "runAt": null })).await?.0, 200);
    let job = mesh.job(&jobs[1]).await?;
    assert_eq!((&job["priority"], &job["runAt"]), (&json!(7), &Value::Null));
    let nobody = "00000000-0000-7000-8000-000000000000";
    for (job, change, status, code) in [
        (jobs[0].as_str(), json!({}), 400, "missing_field"),
        (&jobs[0], json!({ "priority": 1_001 }), 400, "invalid_field"),
        (&jobs[0], json!({ "runAt": "soon" }), 400, "invalid_field"),
        (&jobs[0], json!({ "data": {} }), 400, "invalid_field"),
        (nobody, json!({ "priority": 1 }), 404, "job_not_found"),
    ] {
        let (found, answer) = patch(job, change).await?;
        assert_eq!((found, answer["code"].as_str()), (status, Some(code)), "{answer}");
    }
    // A paused project wants no slots.
    let (_, answer) = mesh.get("/api/queue/scale").await?;
    assert_eq!(answer["scale"]["wantedSlots"], 0, "{answer}");
    mesh.set("p", json!({ "paused": false })).await?;
    until_count(&mesh, "p", "completed", 3).await?;
    let order: Vec<usize> = {
        let mut order: Vec<usize> = (0..3).collect();
        order.sort_by_key(|n| receiver.runs(&jobs[*n])[0].at);
        order
    };
    assert_eq!(order, [2, 1, 0]);
    let (status, answer) = patch(&jobs[0], json!({ "priority": 1 })).await?;
    assert_eq!((status, answer["code"].as_str()), (409, Some("job_not_queued")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_seen_and_aborted_by_keys_of_its_projects() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    for project in ["p", "q"] {
        mesh.set(project, json!({ "paused": true })).await?;
    }
    for part in 0..6 {
        let batches: Vec<String> = (0..10_000).map(|n| format!("{part}-{n}")).collect();
        mesh.post("/api/queue/enqueue", json!({ "projectId": "p", "batchIds": batches })).await?;
    }
    enqueue_many(&mesh, "q", 1).await?;
    let (_, admin) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let key = |name: &str| json!({ "name": name, "scope": "manage", "projects": [name] });
    let (_, p) = create(&mesh, Some(&admin), key("p")).await?;
    let (_, q) = create(&mesh, Some(&admin), key("q")).await?;
    let request = async |method: Method, path: &str, key: &str, body: Option<Value>| {
        let answer = ask(&mesh, &method, path, Some(key), body.as_ref()).await?;
        anyhow::Ok((answer.status, answer.json()))
    };
    // Without a project, a key reaches its own.
    let dry = json!({ "action": "cancel", "filter": {}, "dryRun": true });
    let (_, answer) = request(Method::POST, PATH, &q, Some(dry.clone())).await?;
    assert_eq!(answer["dryRun"]["jobs"], 1, "{answer}");
    let (_, answer) = request(Method::POST, PATH, &admin, Some(dry)).await?;
    assert_eq!(answer["dryRun"]["jobs"], 60_001, "{answer}");
    let of_other = json!({ "action": "cancel", "filter": { "projectId": "p" } });
    let (status, answer) = request(Method::POST, PATH, &q, Some(of_other)).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("project_not_found")));
    // It finds nothing, and looks at all jobs.
    let search = json!({ "action": "cancel", "reason": "too old",
        "filter": { "projectId": "p", "createdBefore": "2020-01-01T00:00:00Z" } });
    let (status, answer) = request(Method::POST, PATH, &p, Some(search)).await?;
    assert_eq!(status, 200, "{answer}");
    let own = format!("{PATH}/{}", answer["operation"]["operationId"].as_str().expect("its id"));
    assert_eq!(answer["operation"]["requestedBy"], "p", "{answer}");
    // At once: it has looked at all jobs within a second or two.
    let (status, answer) = request(Method::POST, &format!("{own}/abort"), &admin, None).await?;
    let operation = &answer["operation"];
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        (&operation["status"], &operation["abortedBy"]),
        (&json!("aborted"), &json!("root"))
    );
    for (method, path) in [(Method::GET, own.clone()), (Method::POST, format!("{own}/abort"))] {
        let (status, answer) = request(method, &path, &q, None).await?;
        assert_eq!((status, &answer["code"]), (404, &json!("operation_not_found")));
    }
    let (_, listed) = request(Method::GET, PATH, &q, None).await?;
    assert_eq!(listed["total"], 0, "{listed}");
    assert!(operation["lookedAt"].as_u64() < operation["candidates"].as_u64(), "{answer}");
    let (_, listed) = request(Method::GET, PATH, &p, None).await?;
    assert_eq!((&listed["total"], &listed["operations"][0]), (&json!(1), operation));
    // Starts and aborts are in the audit log, dry runs are not.
    until("in the audit log", async || {
        let (_, log) = request(Method::GET, "/api/audit", &admin, None).await?;
        let records = log["records"].as_array().cloned().unwrap_or_default();
        let of_operations = records
            .iter()
            .filter(|it| it["path"].as_str().is_some_and(|path| path.starts_with(PATH)));
        let found: Vec<(&Value, &Value)> =
            of_operations.map(|it| (&it["keyName"], &it["reason"])).collect();
        let expected = [(&json!("root"), &Value::Null), (&json!("p"), &json!("too old"))];
        Ok(if found == expected { Ok(()) } else { Err(log.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_refused_by_its_field() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let nobody = "00000000-0000-7000-8000-000000000000";
    for (body, field) in [
        (json!({}), "action"),
        (json!({ "action": "delete", "filter": {} }), "action"),
        (json!({ "action": "cancel" }), "filter"),
        (json!({ "action": "cancel", "filter": [] }), "filter"),
        (
            json!({ "action": "cancel", "filter": { "projectId": "p", "jobIds": [] } }),
            "filter.jobIds",
        ),
        (json!({ "action": "cancel", "filter": { "jobIds": [nobody] } }), "filter.projectId"),
        (
            json!({ "action": "cancel", "filter": { "projectId": "p", "projectIds": ["q"] } }),
            "exclude",
        ),
        (json!({ "action": "cancel", "filter": { "projectIds": [] } }), "filter.projectIds"),
        (
            json!({ "action": "cancel", "filter": { "projectId": "p", "jobIds": ["x"] } }),
            "filter.jobIds[0]",
        ),
        (json!({ "action": "cancel", "filter": { "status": "failed" } }), "filter.status"),
        (json!({ "action": "retry", "filter": { "status": "queued" } }), "filter.status"),
        (
            json!({ "action": "cancel", "filter": { "from": "2026-01-01T00:00:00Z" } }),
            "filter.from",
        ),
        (json!({ "action": "cancel", "filter": { "model": "m" } }), "model"),
        (json!({ "action": "cancel", "filter": {}, "priority": 3 }), "priority"),
        (json!({ "action": "setPriority", "filter": {} }), "priority"),
        (json!({ "action": "setPriority", "filter": {}, "priority": 1_001 }), "priority"),
        (json!({ "action": "cancel", "filter": {}, "reason": "x".repeat(501) }), "reason"),
    ] {
        let (status, answer) = mesh.post_keyed(PATH, body.to_string(), None).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(field), "{body}: {status} {answer}");
    }
    let (status, answer) = mesh.get(&format!("{PATH}/{nobody}")).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("operation_not_found")));
    let path = format!("{PATH}/{nobody}/abort");
    let (status, answer) = mesh.post_keyed(&path, String::new(), None).await?;
    assert_eq!((status, &answer["code"]), (404, &json!("operation_not_found")));
    Ok(())
}
