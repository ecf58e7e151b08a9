//! The console in a browser: Chromium, driven by the programs of tests/console.

use std::{path::Path, time::Duration};

use reqwest::{Client, header};
use serde_json::{Value, json};

use crate::{analytics, clients::browse, keys::create, mesh::Mesh, receiver::Receiver};

/// The folder of the screenshots, in the target directory.
const SCREENSHOTS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/console-screenshots");

/// Runs a program on a mesh, while the tasks of the test go on.
async fn browse_mesh(mesh: &Mesh, program: &'static str, argument: &str) -> anyhow::Result<()> {
    let (url, argument) = (mesh.url(""), argument.to_owned());
    tokio::task::spawn_blocking(move || browse(program, &[&url, &argument])).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_followed_retried_and_canceled_without_a_reload() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    browse_mesh(&mesh, "main-path.mjs", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_jobs_that_match_are_counted_and_changed() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    browse_mesh(&mesh, "bulk.mjs", "").await
}

/// The variable for more load.
const LOAD: &str = "JOBMESH_CONSOLE_LOAD";

/// Jobs that wait, their projects, and for how long jobs run meanwhile. `JOBMESH_CONSOLE_LOAD=full` of a release build
/// looks at a million jobs and at 1,000 events a second, for ten minutes.
fn load() -> (usize, usize, u64, u64) {
    match std::env::var(LOAD).as_deref() {
        Ok("full") => (1_000, 1_000, 340, 600),
        _ => (200, 50, 20, 10),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_and_events_keep_the_page_fast_and_still() -> anyhow::Result<()> {
    let (projects, jobs, jobs_per_second, seconds) = load();
    let receiver = Receiver::start().await?;
    receiver.open();
    let mesh = receiver.mesh(&[("JOBMESH_CONCURRENCY", "32")])?;
    let batches: Vec<String> = (0..jobs).map(|n| format!("batch-{n}")).collect();
    for n in 0..projects {
        let project = format!("waiting-{n}");
        mesh.set(&project, json!({ "paused": true })).await?;
        let body = json!({ "projectId": project, "batchIds": batches });
        mesh.post("/api/queue/enqueue", body).await?;
    }
    let looking = json!({
        "seconds": seconds, "queued": projects * jobs, "jobsPerSecond": jobs_per_second,
        "isAlone": std::env::var_os(LOAD).is_some(),
    });
    let looking = looking.to_string();
    let browsing = browse_mesh(&mesh, "load.mjs", &looking);
    let enqueueing = async {
        // Ticks that were missed are made up for: the rate is kept.
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        for round in 0_u64.. {
            tick.tick().await;
            let batches: Vec<String> =
                (0..jobs_per_second / 10).map(|n| format!("{round}-{n}")).collect();
            let body = json!({ "projectId": "busy", "batchIds": batches });
            mesh.post("/api/queue/enqueue", body).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        browsed = browsing => browsed,
        ended = enqueueing => ended,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keyboard_is_enough() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    browse_mesh(&mesh, "keyboard.mjs", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_view_fits_any_window_and_is_accessible() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    browse_mesh(&mesh, "views.mjs", SCREENSHOTS).await?;
    assert!(Path::new(SCREENSHOTS).join("overview-360-dark.png").is_file());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_reads_sees_no_button() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[])?;
    let (_, admin) = create(&mesh, None, json!({ "name": "root", "scope": "admin" })).await?;
    browse_mesh(&mesh, "keys.mjs", &admin).await
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_those_of_the_api_and_of_sql() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let mesh = analytics::ended(&receiver).await?;
    let sql = "SELECT project, countIf(final), countIf(outcome = 'completed'),
            countIf(outcome = 'failed'), sum(tokens_in)
        FROM job_runs GROUP BY project ORDER BY project";
    let rows = mesh.sql(sql).await?;
    let rows: Vec<Vec<Value>> = rows
        .lines()
        .map(|line| {
            let fields = line.split('\t');
            fields.map(|it| it.parse::<u64>().map_or_else(|_| it.into(), Value::from)).collect()
        })
        .collect();
    browse_mesh(&mesh, "analytics.mjs", &serde_json::to_string(&rows)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn page_and_its_files_are_cached_and_protected() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let client = Client::builder().no_proxy().build()?;
    let page = client.get(mesh.url("/")).send().await?.error_for_status()?;
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str()?.to_owned();
    assert!(policy.starts_with("default-src 'self'; ") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()[header::CACHE_CONTROL], "no-cache");
    let etag = page.headers()[header::ETAG].clone();
    let same = client.get(mesh.url("/")).header(header::IF_NONE_MATCH, &etag).send().await?;
    assert_eq!(same.status(), 304);
    let text = page.text().await?;
    let script = text.split("./assets/").find(|rest| rest.contains(".js\""));
    let script = script.and_then(|rest| rest.split('"').next()).expect("the page has a script");
    let url = mesh.url(&format!("/assets/{script}"));
    let plain = client.get(&url).send().await?.error_for_status()?;
    assert!(plain.headers()[header::CACHE_CONTROL].to_str()?.contains("immutable"));
    assert_eq!(plain.headers().get(header::CONTENT_ENCODING), None);
    let bytes = plain.bytes().await?.len();
    let packed = client.get(&url).header(header::ACCEPT_ENCODING, "br, gzip").send().await?;
    assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
    assert!(packed.bytes().await?.len() < bytes / 2);
    let (status, missing) = mesh.get("/assets/none.js").await?;
    assert_eq!((status, &missing["code"]), (404, &Value::from("no_such_endpoint")));
    Ok(())
}
