//! Probes: a service lives while its process answers, and is ready while it can do its own work.

use serde_json::{Value, json};

use crate::{
    mesh::{send, until},
    services::{ROLES, Services},
};

const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;

async fn until_ready(services: &Services, role: &str, ready: bool) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    until(&format!("{role} ready: {ready}"), async || {
        let (status, answer) = services.probe(role, "/readyz").await?;
        last = answer;
        let is_so = status == if ready { 200 } else { 503 };
        Ok(if is_so { Ok(()) } else { Err(format!("{status} {last}")) })
    })
    .await?;
    assert_eq!(services.probe(role, "/livez").await?.0, 200, "{role} lives");
    Ok(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_of_what_a_service_does_itself() -> anyhow::Result<()> {
    let mut services = Services::start(1, &[("JOBMESH_HANDLERS", "process_batch=noop")]).await?;
    for role in ROLES {
        until_ready(&services, role, true).await?;
    }
    // The API goes on without sums over time and without processors.
    for (role, part) in [("metrics", "metrics"), ("processor", "processor")] {
        services.signal(role, SIGSTOP)?;
        until("missed", async || {
            let (_, answer) = services.probe("edge", "/readyz").await?;
            Ok(if answer[part] == false { Ok(()) } else { Err(answer.to_string()) })
        })
        .await?;
        until_ready(&services, "edge", true).await?;
    }
    let body = json!({ "projectId": "p", "batchId": "b" });
    assert_eq!(services.post("/api/queue/enqueue", body).await?["success"], true);
    for role in ["metrics", "processor"] {
        services.signal(role, SIGCONT)?;
    }
    // Not without state.
    services.signal("state", SIGSTOP)?;
    let answer = until_ready(&services, "edge", false).await?;
    assert_eq!((&answer["nats"], &answer["state"]), (&json!(true), &json!(false)));
    services.signal("state", SIGCONT)?;
    until_ready(&services, "edge", true).await?;
    services.cluster.kill(0)?;
    for role in ROLES {
        let answer = until_ready(&services, role, false).await?;
        let shown = if role == "edge" { &answer["nats"] } else { &answer["checks"]["nats"] };
        assert_ne!(*shown, if role == "edge" { json!(true) } else { json!("ok") }, "{role}");
    }
    services.cluster.restart(0)?;
    for role in ROLES {
        until_ready(&services, role, true).await?;
    }
    Ok(())
}

/// One server of three still answers, and can confirm nothing.
#[tokio::test(flavor = "multi_thread")]
async fn services_at_a_server_without_a_quorum_are_not_ready() -> anyhow::Result<()> {
    let services = Services::start(3, &[("JOBMESH_HANDLERS", "process_batch=noop")]).await?;
    // State and the edge are connected to the first.
    for node in [1, 2] {
        send(services.cluster.id(node), SIGSTOP)?;
    }
    until_ready(&services, "edge", false).await?;
    until("without a leader", async || {
        let (status, answer) = services.probe("edge", "/readyz").await?;
        let is_so = status == 503 && answer["nats"] == true && answer["state"] == false;
        Ok(if is_so { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    let answer = until_ready(&services, "state", false).await?;
    assert_eq!(answer["checks"]["nats"], "ok", "{answer}");
    for node in [1, 2] {
        send(services.cluster.id(node), SIGCONT)?;
    }
    for role in ["state", "edge"] {
        until_ready(&services, role, true).await?;
    }
    Ok(())
}
