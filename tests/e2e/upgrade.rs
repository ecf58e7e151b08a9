//! Services are replaced, one at a time and under load, by those of a program whose messages have a newer version: with a verb,
//! an event and a field of their own.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, ensure};
use nats::names;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    api::Api,
    mesh::until,
    services::{Services, program},
};

/// How long a client waits before its one retry.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The id of the command that only the newer program knows.
const COMMAND_ID: &str = "01a22100-0000-7000-8000-000000000001";
/// The version that the newer program knows.
const NEXT: &str = "3";

/// The newer program, built beside this one.
fn next_program() -> anyhow::Result<PathBuf> {
    let (folder, is_release) = {
        let folder = program().parent().context("a folder")?.to_owned();
        let is_release = folder.ends_with("release");
        (folder, is_release)
    };
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "-p", "tests", "--bin", "next", "--features", "next-version"]);
    build.args(is_release.then_some("--release"));
    build.arg("--target-dir").arg(folder.parent().context("a folder")?);
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    ensure!(built.success(), "the newer program is not built: {built}");
    Ok(folder.join("next"))
}

/// Enqueues through all edges in turn until `stop`: the jobs, and the requests that failed at their retry.
async fn load(edges: Vec<Api>, stop: watch::Receiver<bool>) -> (Vec<String>, Vec<String>) {
    let (mut jobs, mut failed) = (Vec::new(), Vec::new());
    for n in 0.. {
        if *stop.borrow() {
            break;
        }
        let body = json!({ "projectId": "load", "batchId": format!("b{n}") }).to_string();
        let key = format!("key-{n}");
        let mut last = String::new();
        for edge in [&edges[n % edges.len()], &edges[(n + 1) % edges.len()]] {
            match edge.post_keyed("/api/queue/enqueue", body.clone(), Some(&key)).await {
                Ok((200 | 202, answer)) => {
                    jobs.push(answer["jobId"].as_str().expect("its id").to_owned());
                    last.clear();
                    break;
                }
                Ok((status, answer)) => last = format!("{status} {answer}"),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
        failed.extend(Some(last).filter(|last| !last.is_empty()));
    }
    (jobs, failed)
}

async fn until_probe(
    services: &Services,
    name: &str,
    status: u16,
    text: &str,
) -> anyhow::Result<()> {
    until(&format!("{name}: {status} {text}"), async || {
        let (found, answer) = services.probe(name, "/readyz").await?;
        let is_so = found == status && answer.to_string().contains(text);
        Ok(if is_so { Ok(()) } else { Err(format!("{found} {answer}")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_replaced_by_newer_ones_under_load() -> anyhow::Result<()> {
    let next = tokio::task::spawn_blocking(next_program).await??;
    let mut services = Services::start_pairs(&[]).await?;
    let nats = services.cluster.address(0);
    let broker = nats::Broker::connect(&format!("nats://{nats}"), "test").await?;
    let check = async |program: PathBuf| {
        let mut check = Command::new(program);
        check.args(["upgrade", "--check"]).env("JOBMESH_NATS_URL", format!("nats://{nats}"));
        let output = tokio::task::spawn_blocking(move || check.output()).await??;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        anyhow::Ok((output.status.success(), text))
    };
    let (can, text) = check(program()).await?;
    assert!(can && text.contains("nothing that answers is older"), "{text}");
    let (can, text) = check(next.clone()).await?;
    assert!(can && text.contains("state, metrics, processor, edge"), "{text}");
    let (stop, stopped) = watch::channel(false);
    let loading = tokio::spawn(load(services.edges.clone(), stopped));
    let completed = async |services: &Services| {
        let counts = services.counts("load").await?;
        counts["completed"].as_u64().context("a number")
    };
    let until_more = async |services: &Services| {
        let mut before = None;
        until("more jobs are completed", async || {
            let now = completed(services).await?;
            let first = *before.get_or_insert(now);
            Ok(if now >= first + 5 { Ok(()) } else { Err(now.to_string()) })
        })
        .await
    };
    until_more(&services).await?;

    // The follower is replaced first. The older one leads, until it meets a command that it cannot read.
    let older = services.leading_state()?;
    let newer = if older == "state" { "state-2" } else { "state" };
    services.replace(newer, &next)?;
    until_probe(&services, newer, 200, "ok").await?;
    until_more(&services).await?;
    assert_eq!(services.leading_state()?, older);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(names::REQUIRED_VERSION, NEXT);
    let note = json!([{ "id": COMMAND_ID, "command": { "note": "hello" } }]).to_string();
    broker.js.publish_with_headers("jobmesh.cmd.note", headers, note.into()).await?.await?;
    until_probe(&services, older, 503, "it needs version 3 of messages").await?;
    until("the newer one leads", async || {
        let leader = services.leading_state()?;
        Ok(if leader == newer { Ok(()) } else { Err(leader.to_owned()) })
    })
    .await?;
    until_more(&services).await?;
    // Metrics of the older version stops before the event that came of it.
    until("metrics pauses", async || {
        let mut found = String::new();
        for name in ["metrics", "metrics-2"] {
            found.push_str(&services.probe(name, "/readyz").await?.1.to_string());
        }
        Ok(if found.contains("it needs version 3") { Ok(()) } else { Err(found) })
    })
    .await?;
    let (can, text) = check(next.clone()).await?;
    assert!(can && text.contains("state, metrics, processor, edge"), "{text}");
    let (can, text) = check(program()).await?;
    assert!(!can && text.contains("older than the mesh"), "{text}");

    for role in ["state", "metrics", "processor", "edge"] {
        for name in [role.to_owned(), format!("{role}-2")] {
            if name == newer {
                continue;
            }
            services.replace(&name, &next)?;
            until_probe(&services, &name, 200, "").await?;
        }
    }
    let (can, text) = check(next.clone()).await?;
    assert!(can && text.contains("nothing that answers is older"), "{text}");
    until_more(&services).await?;
    stop.send_replace(true);
    let (jobs, failed) = loading.await?;
    assert!(failed.is_empty(), "{failed:?}");
    until("all completed", async || {
        let now = completed(&services).await?;
        Ok(if now == jobs.len() as u64 { Ok(()) } else { Err(format!("{now} of {}", jobs.len())) })
    })
    .await?;
    until("in ClickHouse, each once", async || {
        let query = "SELECT countIf(final), uniqExactIf(job, final) FROM job_runs";
        let rows = services.sql(&format!("{query} WHERE project = 'load'")).await?;
        let expected = format!("{0}\t{0}", jobs.len());
        Ok(if rows.trim() == expected { Ok(()) } else { Err(rows) })
    })
    .await
}
