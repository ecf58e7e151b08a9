//! The audit log: each change is recorded once, with its API key and its reason.

use reqwest::{Client, Method, header::HeaderValue};
use serde_json::{Value, json};

use crate::{
    keys::{ask, create},
    mesh::{Mesh, PATIENCE, until},
};

/// Makes a change and says why.
async fn change(
    mesh: &Mesh,
    method: Method,
    path: &str,
    key: &str,
    body: Option<Value>,
    reason: &str,
) -> anyhow::Result<u16> {
    let client = Client::builder().no_proxy().build()?;
    let request = client.request(method, mesh.url(path)).timeout(PATIENCE).bearer_auth(key);
    let request = request.header("Jobmesh-Reason", HeaderValue::from_bytes(reason.as_bytes())?);
    let request = match body {
        Some(body) => request.json(&body),
        None => request,
    };
    Ok(request.send().await?.status().as_u16())
}

async fn records(mesh: &Mesh, key: &str, query: &str) -> anyhow::Result<Value> {
    let path = format!("/api/audit?{query}");
    let answer = ask(mesh, &Method::GET, &path, Some(key), None).await?;
    anyhow::ensure!(answer.status == 200, "{path}: {answer:?}");
    Ok(answer.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_recorded_with_who_made_it_and_why() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let (_, root) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let tenant = json!({ "name": "tenant", "scope": "manage", "projects": ["a"] });
    let (tenant_id, tenant) = create(&mesh, Some(&root), tenant).await?;
    let enqueue = json!({ "projectId": "a", "batchId": "b" });
    let enqueued =
        ask(&mesh, &Method::POST, "/api/queue/enqueue", Some(&tenant), Some(&enqueue)).await?;
    assert_eq!(enqueued.status, 200);
    let schedule = "/api/projects/a/schedules/nightly";
    let all = json!({ "projectId": "a" });
    let changes = [
        (Method::PUT, "/api/projects/a", Some(json!({ "weight": 2 })), "weight", 200),
        (Method::PUT, "/api/projects/a", Some(json!({ "maxActiveJobs": 9 })), "not mine", 403),
        (Method::PUT, schedule, Some(json!({ "cron": "0 0 1 1 *" })), "yearly", 200),
        (Method::DELETE, schedule, None, "no more", 200),
        (Method::POST, "/api/queue/cancel", Some(all), "übung", 200),
        (Method::POST, "/api/queue/cancel", Some(json!({ "projectId": 3 })), "invalid", 400),
    ];
    for (method, path, body, reason, status) in changes.clone() {
        let answered = change(&mesh, method, path, &tenant, body, reason).await?;
        assert_eq!(answered, status, "{path} {reason}");
    }
    let too_long = "x".repeat(501);
    let answered = change(&mesh, Method::PUT, "/api/projects/a", &tenant, None, &too_long).await?;
    assert_eq!(answered, 400);

    let of_tenant = format!("keyId={tenant_id}");
    until("recorded", async || {
        let found = records(&mesh, &root, &of_tenant).await?;
        let count = found["records"].as_array().map_or(0, Vec::len);
        Ok(if count >= 5 { Ok(()) } else { Err(found.to_string()) })
    })
    .await?;
    let found = records(&mesh, &root, &of_tenant).await?;
    let found = found["records"].as_array().cloned().unwrap_or_default();
    let recorded = changes.iter().filter(|(.., status)| *status != 400);
    // The last comes first.
    for (record, (method, path, _, reason, status)) in found.iter().zip(recorded.clone().rev()) {
        let shown = format!("{record:#}");
        assert_eq!(record["method"], method.as_str(), "{shown}");
        assert_eq!((&record["path"], &record["status"]), (&json!(path), &json!(status)), "{shown}");
        assert_eq!(record["reason"], *reason, "{shown}");
        assert_eq!((&record["keyName"], &record["projectId"]), (&json!("tenant"), &json!("a")));
        assert_eq!(record["address"], "127.0.0.1", "{shown}");
    }
    assert_eq!(found.len(), recorded.count());
    assert_eq!(found[0]["target"], "all batches");

    // Pages have every record once; the first two are of the keys.
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = records(&mesh, &root, &format!("limit=2{cursor}")).await?;
        paged.extend(page["records"].as_array().cloned().unwrap_or_default());
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged[..5], found);
    let first = &paged[6];
    assert_eq!((paged.len(), &first["path"]), (7, &json!("/api/keys")), "{first:#}");
    assert!(first.get("keyId").is_none(), "the first key was made without one: {first:#}");
    assert_eq!(paged[5]["target"], format!("key {tenant_id}"));
    let of_project = records(&mesh, &root, "projectId=a").await?;
    assert_eq!(of_project["records"].as_array().map(Vec::len), Some(5));
    let refused = ask(&mesh, &Method::GET, "/api/audit", Some(&tenant), None).await?;
    assert_eq!(refused.status, 403);
    let in_table = mesh.sql("SELECT count() FROM jobmesh.audit FINAL").await?;
    assert_eq!(in_table.trim(), "7");
    // Also what a key may not do at all, up to a bound.
    let reader = json!({ "name": "reader", "scope": "read", "projects": ["a"] });
    let (reader_id, reader) = create(&mesh, Some(&root), reader).await?;
    for _ in 0..REFUSALS_MAX + 10 {
        let weight = Some(json!({ "weight": 3 }));
        let path = "/api/projects/a";
        let answered = change(&mesh, Method::PUT, path, &reader, weight, "curious").await?;
        assert_eq!(answered, 403);
    }
    let of_reader = format!("keyId={reader_id}&limit=200");
    until("recorded", async || {
        let found = records(&mesh, &root, &of_reader).await?;
        let found = found["records"].as_array().cloned().unwrap_or_default();
        assert!(found.len() <= REFUSALS_MAX);
        assert!(found.iter().all(|it| it["status"] == 403 && it["reason"] == "curious"));
        Ok(if found.len() == REFUSALS_MAX { Ok(()) } else { Err(found.len().to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_change_is_recorded_with_the_project_that_its_body_names() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let (_, root) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    let reader = json!({ "name": "reader", "scope": "read" });
    let (_, reader) = create(&mesh, Some(&root), reader).await?;
    for (path, body) in [
        ("/api/queue/cancel", json!({ "projectId": "a" })),
        ("/api/queue/retry", json!({ "projectId": "a", "retryAll": true })),
        ("/api/queue/operations", json!({ "action": "cancel", "filter": { "projectId": "a" } })),
    ] {
        let status = change(&mesh, Method::POST, path, &reader, Some(body), "tried").await?;
        assert_eq!(status, 403, "{path}");
    }
    until("recorded", async || {
        let found = records(&mesh, &root, "projectId=a").await?;
        let count = found["records"].as_array().map_or(0, Vec::len);
        Ok(if count == 3 { Ok(()) } else { Err(found.to_string()) })
    })
    .await
}

/// The refusals of a key within a minute that are recorded.
const REFUSALS_MAX: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_trusted_proxy_are_recorded_with_their_own_address() -> anyhow::Result<()>
{
    let client = Client::builder().no_proxy().build()?;
    for (trusted, address) in [("127.0.0.0/8", "198.51.100.7"), ("10.0.0.0/8", "127.0.0.1")] {
        let mesh = Mesh::start_with(&[("JOBMESH_TRUSTED_PROXIES", trusted)])?;
        let (_, root) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
        let request = client.put(mesh.url("/api/projects/a")).bearer_auth(&root);
        let request = request.header("X-Forwarded-For", "203.0.113.9, 198.51.100.7");
        let answer = request.json(&json!({ "weight": 2 })).send().await?;
        assert_eq!(answer.status(), 200);
        until("recorded", async || {
            let found = records(&mesh, &root, "projectId=a").await?;
            let record = found["records"][0].clone();
            Ok(if record["address"] == address { Ok(()) } else { Err(record.to_string()) })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_recorded_also_if_the_broker_was_away() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let (_, root) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    // What was sent to it before it is killed is lost with the connection.
    mesh.signal("nats-server", libc::SIGSTOP)?;
    let weight = Some(json!({ "weight": 3 }));
    let status = change(&mesh, Method::PUT, "/api/projects/a", &root, weight, "away").await?;
    assert!(status >= 500, "{status}");
    mesh.signal("nats-server", libc::SIGKILL)?;
    until("recorded", async || {
        let found = records(&mesh, &root, "projectId=a").await?;
        let first = &found["records"][0];
        let is_recorded = first["reason"] == "away" && first["status"] == status;
        Ok(if is_recorded { Ok(()) } else { Err(found.to_string()) })
    })
    .await
}
