//! `bench`: measures a mesh of its own, as its users meet it, and prints the table that
//! docs/benchmark.md shows. Its figures are rates of one run on one machine; what can be compared with
//! another machine's are their ratios.

mod load;
mod mesh;
mod peers;
mod report;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;

use mesh::Mesh;
use report::Report;

/// Jobs of one drain.
const DRAIN_JOBS: usize = 20_000;
/// Jobs of one drain behind a backlog: enough to reach all of the broker's blocks.
const BEHIND_DRAIN_JOBS: usize = 50_000;
/// Jobs that are enqueued one by one, by each number of callers.
const SINGLES: [(usize, usize); 4] = [(1, 2_000), (16, 10_000), (64, 20_000), (256, 20_000)];
/// Jobs that are enqueued and run at the same time, to their rows in ClickHouse.
const LIFE_JOBS: usize = 50_000;
/// Jobs that are cancelled, and queued again, by one request.
const MANY_JOBS: usize = 100_000;
/// Followers of events while answers are timed.
const FOLLOWERS: usize = 200;
/// Followers of a batch each while jobs are drained.
const BATCH_FOLLOWERS: usize = 2_000;
/// How long answers are timed.
const TIMED: Duration = Duration::from_secs(5);
/// Jobs of one enqueue beside a backlog.
const ENQUEUE_JOBS: usize = 100_000;
/// Jobs of one request.
const REQUEST_JOBS: usize = 1_000;
/// Requests at the same time.
const CALLERS: usize = 4;
/// Jobs that a processor runs at once.
const CONCURRENCY: usize = 256;
/// Bytes of each job's data.
const DATA_BYTES: usize = 256;
/// Projects, where there are many.
const PROJECTS: usize = 1_000;
/// How many jobs wait in the small backlog.
const SMALL_BACKLOG_JOBS: usize = 10_000;
/// How many jobs wait in the large backlog, where nobody says otherwise.
const BACKLOG_JOBS: usize = 1_000_000;
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Callers of the peer's single enqueue.
const PEER_CALLERS: usize = 64;

/// Runs the benchmark. `--backlog <jobs>` sets the size of the large backlog; `--json` writes
/// JSON in the place of a table.
pub fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(2).collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    arguments.retain(|argument| argument != "--json");
    let backlog = match &arguments[..] {
        [] => Some(BACKLOG_JOBS),
        [flag, jobs] if flag == "--backlog" => jobs.parse().ok(),
        _ => None,
    };
    let Some(backlog) = backlog else {
        eprintln!("usage: bench [--backlog <jobs>] [--json]");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|it| it.block_on(run(backlog)));
    match ended {
        Ok(report) => {
            println!("{}", if json { report.json() } else { report.markdown() });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(backlog: usize) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mesh = Mesh::start().await?;
    report.rss("idle", &mesh)?;
    let bulk = enqueue(&mesh, &["plain"], DRAIN_JOBS).await?;
    report.rate("enqueue, in requests of 1,000, to an empty queue", bulk);
    let mut single = f64::NAN;
    let before = mesh.cpu()?;
    let plain = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, one project, limits off", plain);
    report.cpu("drain", &before, &mesh.cpu()?, DRAIN_JOBS);
    for (callers, jobs) in SINGLES {
        let (rate, times) = load::singles(&mesh.client(), "single", callers, jobs).await?;
        report.rate(&format!("enqueue one by one, {callers} callers"), rate);
        report.latency(&format!("enqueue one by one, {callers} callers"), &times);
        if callers == PEER_CALLERS {
            single = rate;
        }
    }
    mesh.drain_rest().await?;
    let life = whole_life(&mesh).await?;
    report.rate("whole life: enqueue and drain together, to the row in ClickHouse", life);
    followed(&mesh, &mut report).await?;
    answers(&mesh, &mut report).await?;
    many(&mesh, &mut report).await?;
    match peers::bullmq(DRAIN_JOBS, DRAIN_JOBS)? {
        None => report.note("BullMQ", "not measured: redis-server, npm or node is missing"),
        Some(peer) => {
            report.rate("BullMQ addBulk, 1,000 at a time", peer.add_bulk);
            report.rate("BullMQ drain", peer.drain);
            report.rate("BullMQ add, 64 callers, in process", peer.add);
            report.ratio("enqueue in requests of 1,000 against addBulk", bulk / peer.add_bulk, 4.0);
            report.ratio("enqueue one by one over HTTP against add", single / peer.add, 1.0);
            report.ratio("drain against BullMQ's", plain / peer.drain, 1.3);
            let both = 1.0 / (1.0 / peer.add_bulk + 1.0 / peer.drain);
            report.ratio("whole life against addBulk, then drain", life / both, 1.8);
        }
    }

    enqueue(&mesh, &["plain"], DRAIN_JOBS).await?;
    let unlimited = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, one project, limits off, again", unlimited);
    let limits = json!({
        "maxConcurrency": 1_000_000, "requestsPerMinute": 100_000_000,
        "tokensPerMinute": 1_000_000_000_000_u64,
    });
    mesh.set("limited", limits).await?;
    enqueue(&mesh, &["limited"], DRAIN_JOBS).await?;
    let limited = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, one project, limits on", limited);
    report.ratio("limits on against off", limited / unlimited, 0.9);

    let names: Vec<String> = (0..PROJECTS).map(|n| format!("many-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    enqueue(&mesh, &names, DRAIN_JOBS).await?;
    let many = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, 1,000 projects", many);
    enqueue(&mesh, &["plain"], DRAIN_JOBS).await?;
    let again = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, one project, once more", again);
    report.ratio("1,000 projects against one", many / again, 0.8);

    let small = behind(&mesh, &mut report, SMALL_BACKLOG_JOBS).await?;
    mesh.drain_rest().await?;
    let large = behind(&mesh, &mut report, backlog).await?;
    report.ratio(
        "enqueue behind the large backlog against the small",
        large.enqueue / small.enqueue,
        0.8,
    );
    report.ratio("drain of the large backlog against the small", large.drain / small.drain, 0.8);
    report.rss_goal("state", &format!("{backlog} queued"), &mesh, 400)?;
    let queued = mesh.count("queued").await?;
    let begun = Instant::now();
    mesh.kill_state()?;
    mesh.until_led(PATIENCE).await?;
    report.seconds(&format!("cold start of state at {queued} queued"), begun.elapsed(), Some(8.0));
    let after = mesh.count("queued").await?;
    ensure!(after == queued + 1, "{after} are queued after a restart and one more, not {queued}");
    mesh.stop().await?;
    Ok(report)
}

/// Enqueues and runs jobs at the same time; returns jobs a second, to the last one's row.
async fn whole_life(mesh: &Mesh) -> anyhow::Result<f64> {
    let processor = mesh.start_processor()?;
    mesh.until_processor(PATIENCE).await?;
    let begun = Instant::now();
    enqueue(mesh, &["life"], LIFE_JOBS).await?;
    while mesh.rows_of("life").await? < LIFE_JOBS as u64 {
        ensure!(begun.elapsed() < PATIENCE, "not all rows came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rate = LIFE_JOBS as f64 / begun.elapsed().as_secs_f64();
    let rows = mesh.rows_of("life").await?;
    ensure!(rows == LIFE_JOBS as u64, "{rows} ends of {LIFE_JOBS} jobs");
    processor.stop().await?;
    Ok(rate)
}

/// A drain while many follow it, each its own batch; all must hear of its end.
async fn followed(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    let client = mesh.client();
    mesh.set("followed", json!({ "paused": true })).await?;
    for part in 0..DRAIN_JOBS / REQUEST_JOBS {
        let batches: Vec<String> = (0..REQUEST_JOBS).map(|n| format!("{part}-{n}")).collect();
        let body = json!({ "projectId": "followed", "batchIds": batches });
        client.post("/api/queue/enqueue", &body).await?;
    }
    // Every tenth, so that they are heard of from the first to the last.
    let every = DRAIN_JOBS / BATCH_FOLLOWERS;
    let batches = (0..DRAIN_JOBS).step_by(every);
    let batches = batches.map(|n| format!("{}-{}", n / REQUEST_JOBS, n % REQUEST_JOBS));
    let batches: Vec<String> = batches.collect();
    let mut hearing = load::hear_all(&client, "followed", &batches).await?;
    mesh.set("followed", json!({ "paused": false })).await?;
    let rate = drain(mesh, DRAIN_JOBS).await?;
    while let Some(heard) = hearing.join_next().await {
        heard??;
    }
    let what = format!("drain, {BATCH_FOLLOWERS} follow a batch each and hear of its end");
    report.rate_goal(&what, rate, 2_000.0);
    Ok(())
}

/// How long answers take while jobs come and run, and many follow them.
async fn answers(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    let processor = mesh.start_processor()?;
    mesh.until_processor(PATIENCE).await?;
    let client = mesh.client();
    let job = client.enqueue_one("timed", "first").await?;
    let paths = ["stats", "stats?projectId=timed", &format!("status/{job}"), "metrics"]
        .map(|path| format!("/api/queue/{path}"));
    let mut found = Vec::new();
    let during = async {
        let load = async {
            let begun = Instant::now();
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            for n in 0.. {
                tick.tick().await;
                if begun.elapsed() > TIMED {
                    break;
                }
                client.enqueue_one("timed", &format!("b{n}")).await?;
            }
            anyhow::Ok(())
        };
        let asked = load::ask(&client, &paths, Duration::from_millis(5), TIMED);
        let (load, asked) = tokio::join!(load, asked);
        load?;
        found = asked?;
        Ok(())
    };
    load::follow(&client, "timed", FOLLOWERS, during).await?;
    for (path, times) in paths.iter().zip(&found) {
        let path = if path.contains("status") { "/api/queue/status/…" } else { path };
        report.latency(&format!("{path}, at 200 jobs/s, {FOLLOWERS} followers"), times);
    }
    processor.stop().await
}

/// Cancel of many queued jobs, and retry of many failed ones.
async fn many(mesh: &Mesh, report: &mut Report) -> anyhow::Result<()> {
    enqueue(mesh, &["many"], MANY_JOBS).await?;
    let begun = Instant::now();
    let client = mesh.client();
    client.post("/api/queue/cancel", &json!({ "projectId": "many" })).await?;
    while mesh.count_of("many", "canceled").await? < MANY_JOBS as u64 {
        ensure!(begun.elapsed() < PATIENCE, "not all were canceled");
    }
    report.seconds(&format!("cancel of {MANY_JOBS} queued jobs"), begun.elapsed(), None);
    mesh.set("failing", json!({ "handler": "missing", "maxAttempts": 1 })).await?;
    enqueue(mesh, &["failing"], MANY_JOBS).await?;
    mesh.drain_rest().await?;
    let begun = Instant::now();
    let retry = json!({ "projectId": "failing", "retryAll": true });
    while mesh.count_of("failing", "failed").await? > 0 {
        ensure!(begun.elapsed() < PATIENCE, "not all were retried");
        client.post("/api/queue/retry", &retry).await?;
    }
    report.seconds(&format!("retryAll of {MANY_JOBS} failed jobs"), begun.elapsed(), None);
    client.post("/api/queue/cancel", &json!({ "projectId": "failing" })).await?;
    Ok(())
}

/// Rates while many jobs of many projects are queued, all of which may run.
struct Behind {
    enqueue: f64,
    drain: f64,
}

async fn behind(mesh: &Mesh, report: &mut Report, backlog: usize) -> anyhow::Result<Behind> {
    let names: Vec<String> = (0..PROJECTS).map(|n| format!("many-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    enqueue(mesh, &names, backlog).await?;
    let queued = mesh.count("queued").await?;
    ensure!(queued == backlog as u64, "{queued} are queued, not {backlog}");
    report.rss(&format!("{backlog} queued"), mesh)?;
    let enqueue = enqueue(mesh, &["plain"], ENQUEUE_JOBS).await?;
    report.rate(&format!("enqueue, behind {backlog}"), enqueue);
    let drain = drain_some(mesh, BEHIND_DRAIN_JOBS).await?;
    report.rate(&format!("drain, of {backlog} and more"), drain);
    Ok(Behind { enqueue, drain })
}

/// Enqueues jobs over some projects; returns jobs a second.
async fn enqueue(mesh: &Mesh, projects: &[&str], jobs: usize) -> anyhow::Result<f64> {
    let each = (jobs / projects.len()).clamp(1, REQUEST_JOBS);
    let requests = jobs.div_ceil(each);
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for n in 0..requests {
        if running.len() >= CALLERS
            && let Some(ended) = running.join_next().await
        {
            ended??;
        }
        let (mesh, project) = (mesh.client(), projects[n % projects.len()].to_owned());
        running.spawn(async move { mesh.enqueue(&project, n, each).await });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(jobs as f64 / begun.elapsed().as_secs_f64())
}

/// Starts a processor and waits until it has run `jobs`, which are all; returns jobs a second.
/// Each must have ended once.
async fn drain(mesh: &Mesh, jobs: usize) -> anyhow::Result<f64> {
    let before = mesh.count("completed").await?;
    let rate = drain_some(mesh, jobs).await?;
    let done = mesh.count("completed").await? - before;
    ensure!(done == jobs as u64, "{done} jobs ended, {jobs} were accepted");
    Ok(rate)
}

/// Starts a processor and stops it once it has run `jobs` or more; returns jobs a second from its
/// first to its last.
async fn drain_some(mesh: &Mesh, jobs: usize) -> anyhow::Result<f64> {
    let before = mesh.count("completed").await?;
    let processor = mesh.start_processor()?;
    let mut first = None;
    let begun = Instant::now();
    let rate = loop {
        let done = mesh.count("completed").await? - before;
        let now = Instant::now();
        if done > 0 && first.is_none() {
            first = Some((now, done));
        }
        if let Some((at, at_first)) = first
            && done >= jobs as u64
        {
            break (done - at_first) as f64 / (now - at).as_secs_f64();
        }
        ensure!(begun.elapsed() < PATIENCE, "{done} of {jobs} completed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    processor.stop().await?;
    Ok(rate)
}
