//! What is measured of one mesh beside enqueue and drain: answers under load, many jobs by one
//! request, limits, projects and backlogs.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{
    BATCH_FOLLOWERS, BEHIND_DRAIN_JOBS, CONCURRENCY, ENQUEUE_JOBS, FOLLOWERS, MANY_JOBS,
    MEDIUM_BACKLOG_JOBS, PART_JOBS, PATIENCE, PROJECTS, REQUEST_JOBS, SMALL_BACKLOG_JOBS, TIMED,
    UNDER_LOAD_EVERY,
    client::Client,
    drain,
    load::{self, Followers, Latencies},
    mesh::Mesh,
    report::{Goal, Report},
};

/// A drain while many clients follow it, each its own batch; all must receive its end.
pub async fn followed(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    let client = mesh.client();
    client.set("followed", json!({ "paused": true })).await?;
    for part in 0..PART_JOBS / REQUEST_JOBS {
        let batches: Vec<String> = (0..REQUEST_JOBS).map(|n| format!("{part}-{n}")).collect();
        let body = json!({ "projectId": "followed", "batchIds": batches });
        client.post("/api/queue/enqueue", &body).await?;
    }
    // Every tenth, so that they are spread over the drain.
    let every = PART_JOBS / BATCH_FOLLOWERS;
    let batches = (0..PART_JOBS).step_by(every);
    let batches = batches.map(|n| format!("{}-{}", n / REQUEST_JOBS, n % REQUEST_JOBS));
    let batches: Vec<String> = batches.collect();
    let mut hearing = load::hear_all(client, "followed", &batches).await?;
    client.set("followed", json!({ "paused": false })).await?;
    let drained = drain::all(mesh, PART_JOBS).await?;
    while let Some(heard) = hearing.join_next().await {
        heard??;
    }
    let what = format!("drain, {BATCH_FOLLOWERS} follow a batch each and receive its end");
    report.rate_goal(&what, drained.rate, Goal::AtLeast(2_000.0));
    Ok(())
}

/// How long answers take while jobs come and run, and many follow them.
pub async fn answers(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    let processor = mesh.start_processor()?;
    mesh.until_processor(PATIENCE).await?;
    let client = mesh.client();
    let job = client.connect().await?.enqueue_one("timed", "first").await?;
    let paths = ["stats", "stats?projectId=timed", &format!("status/{job}"), "metrics"]
        .map(|path| format!("/api/queue/{path}"));
    let followers = Followers::start(client, "timed", FOLLOWERS).await?;
    let before = mesh.usage(Some(&processor))?;
    let load = load::steadily(client, "timed", UNDER_LOAD_EVERY, TIMED * 2);
    // Metrics scan the engine: asked for after the others, they do not stand in their way.
    let asked = async {
        let mut found = load::ask(client, &paths[..3], UNDER_LOAD_EVERY, TIMED).await?;
        found.extend(load::ask(client, &paths[3..], UNDER_LOAD_EVERY, TIMED).await?);
        anyhow::Ok(found)
    };
    let (_, found) = tokio::try_join!(load, asked)?;
    let jobs = (TIMED * 2).as_millis() / UNDER_LOAD_EVERY.as_millis();
    let usage = mesh.usage(Some(&processor))?;
    followers.stop().await?;
    for (path, times) in paths.iter().zip(&found) {
        let path = if path.contains("status") { "/api/queue/status/…" } else { path };
        let goal = Some(Goal::AtMost(if path.ends_with("metrics") { 30.0 } else { 3.0 }));
        let what = format!("{path}, at 200 jobs/s, {FOLLOWERS} followers");
        report.latency(&what, times, [None, goal]);
    }
    report.usage("at 200 jobs/s", &before, &usage, jobs as usize);
    processor.stop().await
}

/// Cancel of many queued jobs, retry of many failed ones and lists of many, and what another project notices
/// of them.
pub async fn many(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    let client = mesh.client();
    // The jobs wait; those of the other project too.
    let idle = load::enqueue_while(client, "other", UNDER_LOAD_EVERY, async {
        tokio::time::sleep(TIMED).await;
        Ok(())
    });
    report.latency("enqueue of another project, idle", &idle.await?.1, [None, None]);
    load::bulk(client, &["many"], MANY_JOBS).await?;
    let lists = ["", "&status=queued", "&status=processing", "&type=process_redo"]
        .map(|filter| format!("/api/queue/jobs?projectId=many&limit=200{filter}"));
    let times = load::ask(client, &lists, UNDER_LOAD_EVERY, TIMED).await?;
    for (path, times) in lists.iter().zip(&times) {
        let what = format!("{path}, of {MANY_JOBS} active jobs");
        report.latency(&what, times, [None, Some(Goal::AtMost(50.0))]);
    }
    let cancel = json!({ "projectId": "many" });
    let cancel = bulk_operation(client, "/api/queue/cancel", cancel, "canceled", MANY_JOBS as u64);
    let ((took, stats), times) =
        load::enqueue_while(client, "other", UNDER_LOAD_EVERY, cancel).await?;
    let goal = Some(Goal::AtMost(1.5));
    report.seconds(&format!("cancel of {MANY_JOBS} queued jobs"), took, goal);
    let goal = Some(Goal::AtMost(50.0));
    report.latencies("enqueue of another project, during that", &times, goal);
    report.latencies("stats, during that", &stats, goal);
    client.set("failing", json!({ "handler": "missing", "maxAttempts": 1 })).await?;
    load::bulk(client, &["failing"], MANY_JOBS).await?;
    mesh.drain_rest().await?;
    client.set("failing", json!({ "paused": true })).await?;
    let retry = json!({ "projectId": "failing", "retryAll": true });
    let retry = bulk_operation(client, "/api/queue/retry", retry, "failed", 0);
    let ((took, stats), times) =
        load::enqueue_while(client, "other", UNDER_LOAD_EVERY, retry).await?;
    let retry_goal = Some(Goal::AtMost(4.0));
    report.seconds(&format!("retryAll of {MANY_JOBS} failed jobs"), took, retry_goal);
    report.latencies("enqueue of another project, during that", &times, goal);
    report.latencies("stats, during that", &stats, goal);
    for project in ["failing", "other"] {
        client.post("/api/queue/cancel", &json!({ "projectId": project })).await?;
    }
    mesh.drain_rest().await
}

/// Requests a bulk operation, and asks for the counts of its project until so many of
/// its jobs have a status. Returns how long that took, and how long each answer took.
async fn bulk_operation(
    client: &Client,
    path: &str,
    request: Value,
    status: &str,
    count: u64,
) -> anyhow::Result<(Duration, Latencies)> {
    let project = request["projectId"].as_str().context("the request names a project")?.to_owned();
    let started = Instant::now();
    let requested = client.post(path, &request);
    let mut connection = client.connect().await?;
    let watched = async {
        let mut times = Vec::new();
        // Often enough to know the end to a few milliseconds, and no load of its own.
        let mut tick = tokio::time::interval(UNDER_LOAD_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            ensure!(started.elapsed() < PATIENCE, "{path} does not end");
            let asked_at = Instant::now();
            let counted = connection.count(Some(&project), status).await?;
            times.push(asked_at.elapsed().as_secs_f64() * 1e3);
            if counted == count {
                return Ok((started.elapsed(), Latencies::new(times)));
            }
        }
    };
    let (requested, watched) = tokio::join!(requested, watched);
    requested?;
    watched
}

/// What limits cost, and many projects.
pub async fn projects(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    let client = mesh.client();
    let limits = json!({
        "maxConcurrency": 1_000_000, "requestsPerMinute": 100_000_000,
        "tokensPerMinute": 1_000_000_000_000_u64,
    });
    client.set("limited", limits).await?;
    let names: Vec<String> = (0..PROJECTS).map(|n| format!("many-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // What it is compared with comes before and after: the machine is not the same for long.
    let mut rates = Vec::new();
    for projects in [&["plain"][..], &["limited"], &["plain"], &names, &["plain"]] {
        load::bulk(client, projects, PART_JOBS).await?;
        rates.push(drain::all(mesh, PART_JOBS).await?.rate);
    }
    let [before, limited, between, many, after] = rates[..] else { unreachable!("five drains") };
    report.rate("drain, one project, limits on", limited);
    report.rate("drain, 1,000 projects", many);
    let off = f64::midpoint(before, between);
    report.rate("drain, one project, limits off", off);
    report.ratio("limits on against off", Some(limited), Some(off), 0.9);
    let one = f64::midpoint(between, after);
    report.ratio("1,000 projects against one", Some(many), Some(one), 0.9);
    Ok(())
}

/// The same rates behind a small and a large backlog, and what the large one costs.
pub async fn backlog(mesh: &Mesh, backlog: usize, report: &mut Report) -> anyhow::Result<()> {
    let small = behind(mesh, report, SMALL_BACKLOG_JOBS, None).await?;
    mesh.drain_rest().await?;
    behind(mesh, report, MEDIUM_BACKLOG_JOBS, None).await?;
    mesh.drain_rest().await?;
    let large = behind(mesh, report, backlog, Some(350.0)).await?;
    for (what, large, small) in
        [("enqueue", large.enqueue, small.enqueue), ("drain", large.drain, small.drain)]
    {
        let what = format!("{what} behind {backlog} against behind {SMALL_BACKLOG_JOBS}");
        report.ratio(&what, Some(large), Some(small), 0.9);
    }
    let client = mesh.client();
    let queued = client.count(None, "queued").await?;
    let begun = Instant::now();
    mesh.kill_state()?;
    mesh.until_led(PATIENCE).await?;
    let what = format!("cold start of state at {queued} queued");
    report.seconds(&what, begun.elapsed(), Some(Goal::AtMost(8.0)));
    let after = client.count(None, "queued").await?;
    ensure!(after == queued + 1, "{after} are queued after a restart and one more, not {queued}");
    Ok(())
}

/// Rates while many jobs of many projects are queued, all of which may run.
struct Behind {
    enqueue: f64,
    drain: f64,
}

async fn behind(
    mesh: &Mesh,
    report: &mut Report,
    backlog: usize,
    memory: Option<f64>,
) -> anyhow::Result<Behind> {
    let names: Vec<String> = (0..PROJECTS).map(|n| format!("many-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    load::bulk(mesh.client(), &names, backlog).await?;
    let queued = mesh.client().count(None, "queued").await?;
    ensure!(queued == backlog as u64, "{queued} are queued, not {backlog}");
    let enqueue = load::bulk(mesh.client(), &["plain"], ENQUEUE_JOBS).await?;
    report.rate(&format!("enqueue, behind {backlog}"), enqueue);
    let drained = drain::some(mesh, BEHIND_DRAIN_JOBS, CONCURRENCY).await?;
    report.memory(&format!("{backlog} queued and a drain"), &drained.usage[1], [memory, None]);
    let what = format!("drain, of {backlog} and more");
    report.rate(&what, drained.rate);
    report.usage(&what, &drained.usage[0], &drained.usage[1], BEHIND_DRAIN_JOBS);
    Ok(Behind { enqueue, drain: drained.rate })
}
