//! Queries over time with twenty million ended runs of thirty days and a thousand projects.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use job::time::{Millis, rfc3339};

use super::{
    PROJECTS,
    load::Latencies,
    mesh::{Durability, Mesh},
    report::{Goal, Report},
};

/// Ended runs, and how many are inserted at once.
const ROWS: u64 = 20_000_000;
const BLOCK_ROWS: u64 = 500_000;
/// The time that they span.
const SPAN: Duration = Duration::from_secs(30 * 24 * 3_600);
/// A day, in ms.
const DAY_MS: Millis = 24 * 3_600_000;
/// How often each query is made, and how long a round takes at least: metrics remembers answers for a second.
const ASKED: usize = 20;
const ROUND: Duration = Duration::from_millis(1_200);
/// The goal for each query, at p95.
const WITHIN_MS: f64 = 100.0;

/// Rows of which some projects have many and most have few, as a mesh would have written them.
fn insert(from: u64) -> String {
    let span_ms = SPAN.as_millis();
    format!(
        "INSERT INTO jobmesh.job_runs (sequence, idx, at, project, batch, job, type, class, run, attempt, outcome, final, ran,
            queued_at, started_at, finished_at, wait_ms, duration_ms, tokens_in, tokens_out, model, worker, error, error_group)
        SELECT 0, number, now64(3) - toIntervalMillisecond(intDiv(({ROWS} - number) * {span_ms}, {ROWS})) AS at,
            concat('p', toString(toUInt32({PROJECTS} * pow(rand(1) / 4294967296, 3)))), concat('b', toString(number % 1000)),
            generateUUIDv4(), if(rand(2) % 10 = 0, 'process_redo', 'process_batch'), 'normal', 1, 1,
            multiIf(rand(3) % 100 < 90, 'completed', rand(3) % 100 < 95, 'failed', rand(3) % 100 < 98, 'retry', 'canceled') AS outcome,
            outcome != 'retry', outcome != 'canceled', at, at, at, rand(4) % 5000, 100 + rand(5) % 20000, rand(6) % 4000, rand(7) % 500,
            concat('model-', toString(rand(8) % 5)), concat('processor-', toString(rand(9) % 20)),
            if(outcome IN ('failed', 'retry'), concat('error ', toString(rand(10) % 200)), ''),
            if(outcome IN ('failed', 'retry'), 1 + rand(10) % 200, 0)
        FROM numbers({from}, {BLOCK_ROWS})"
    )
}

/// The queries of the API and the console, with what they are called in the table.
fn paths(now: Millis, round: usize) -> Vec<(String, String)> {
    let shown = |path: &str| {
        path.replace("&from={day}", "")
            .replace("&from={week}", " of 7 days")
            .replace("&from={month}", " of 30 days")
    };
    // Another time for each round, so that metrics has no answer that it remembers.
    let before = |days: Millis| now - days * DAY_MS - 1_000 * round as Millis;
    let [day, week, month] = [1, 7, 30].map(|days| rfc3339(before(days)));
    let analytics = [
        "bucket=hour&from={day}",
        "bucket=day&from={week}",
        "bucket=day&from={month}",
        "bucket=minute&from={day}",
        "bucket=day&groupBy=project&from={week}",
        "bucket=day&groupBy=project&from={month}",
        "bucket=day&groupBy=model&from={month}",
        "bucket=day&groupBy=type&from={month}",
        "bucket=day&groupBy=outcome&from={week}",
        "bucket=day&groupBy=errorGroup&from={week}",
        "bucket=day&groupBy=processor&from={week}",
        "projectId=p0&bucket=day&from={month}",
        "projectId=p500&bucket=day&from={month}",
        "projectId=p500&bucket=day&groupBy=outcome&from={month}",
    ];
    let mut paths: Vec<String> =
        analytics.map(|query| format!("/api/queue/analytics?{query}")).to_vec();
    paths.extend(
        [
            "/api/queue/metrics?timeRange=24h",
            "/api/queue/metrics?timeRange=30d",
            "/api/queue/metrics?timeRange=all",
            "/api/queue/metrics?timeRange=all&projectId=p0",
            "/api/queue/failures?sort=lastSeen",
            "/api/queue/failures?status=active&from={week}",
            "/api/queue/failures?sort=jobs&from={month}",
            "/api/queue/failures?projectId=p500",
            "/api/queue/jobs?status=failed",
            "/api/queue/jobs?projectId=p0&status=completed",
            "/api/queue/jobs?projectId=p500",
            "/api/queue/jobs?errorGroup=0000000000000007",
            "/api/queue/jobs?projectId=p999&model=model-3",
        ]
        .map(str::to_owned),
    );
    let fill = |path: &str| {
        path.replace("{day}", &day).replace("{week}", &week).replace("{month}", &month)
    };
    paths.iter().map(|path| (shown(path), fill(path))).collect()
}

/// Inserts the rows, and times the queries.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let mesh = Mesh::start(Durability::Fast).await?;
    let began = Instant::now();
    for from in (0..ROWS).step_by(BLOCK_ROWS as usize) {
        mesh.sql("writer", &insert(from)).await?;
    }
    report.rate("rows inserted, with their sums", ROWS as f64 / began.elapsed().as_secs_f64());
    let found = mesh.sql("reader", "SELECT count() FROM jobmesh.job_runs").await?;
    ensure!(found == ROWS.to_string(), "{found} rows were inserted");
    let (mut times, mut names) = (BTreeMap::<String, Vec<f64>>::new(), Vec::new());
    let mut connection = mesh.client().connect().await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as Millis;
    // The first round warms up.
    for round in 0..=ASKED {
        let began = Instant::now();
        for (name, path) in paths(now, round) {
            let asked = Instant::now();
            let answer = connection.get(&path).await?;
            ensure!(answer.status == 200, "{path} got {}", answer.status);
            if round == 0 {
                names.push(name);
            } else {
                times.entry(name).or_default().push(asked.elapsed().as_secs_f64() * 1e3);
            }
        }
        tokio::time::sleep(ROUND.saturating_sub(began.elapsed())).await;
    }
    for name in names {
        let times = Latencies::new(times.remove(&name).unwrap_or_default());
        report.ms(&format!("{name}, p95"), times.quantile(0.95), Some(Goal::AtMost(WITHIN_MS)));
    }
    report.memory("with 20,000,000 rows", &mesh.usage(None)?, [None, None]);
    mesh.stop().await
}
