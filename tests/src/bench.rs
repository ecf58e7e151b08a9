//! `bench`: measures a mesh of its own, as its users meet it, and prints the table that
//! docs/benchmark.md shows. Its figures are rates of one run on one machine; what can be compared with
//! another machine's are their ratios.

mod mesh;
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

/// Runs the benchmark. `--backlog <jobs>` sets the size of the large backlog.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let backlog = match &arguments[..] {
        [] => Some(BACKLOG_JOBS),
        [flag, jobs] if flag == "--backlog" => jobs.parse().ok(),
        _ => None,
    };
    let Some(backlog) = backlog else {
        eprintln!("usage: bench [--backlog <jobs>]");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|it| it.block_on(run(backlog)));
    match ended {
        Ok(report) => {
            println!("{}", report.markdown());
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
    let rate = enqueue(&mesh, &["plain"], DRAIN_JOBS).await?;
    report.rate("enqueue, in requests of 1,000, to an empty queue", rate);
    let plain = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, one project, limits off", plain);

    let limits = json!({
        "maxConcurrency": 1_000_000, "requestsPerMinute": 100_000_000,
        "tokensPerMinute": 1_000_000_000_000_u64,
    });
    mesh.set("limited", limits).await?;
    enqueue(&mesh, &["limited"], DRAIN_JOBS).await?;
    let limited = drain(&mesh, DRAIN_JOBS).await?;
    report.rate("drain, one project, limits on", limited);
    report.ratio("limits on against off", limited / plain, 0.9);

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
    report.seconds(&format!("cold start of state at {queued} queued"), begun.elapsed(), 8.0);
    let after = mesh.count("queued").await?;
    ensure!(after == queued + 1, "{after} are queued after a restart and one more, not {queued}");
    mesh.stop().await?;
    Ok(report)
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
    let drain = drain_some(mesh, DRAIN_JOBS).await?;
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
