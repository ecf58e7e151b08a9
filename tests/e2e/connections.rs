//! Connections to NATS that are closed, cut, reset and stalled while jobs run: no accepted job is
//! lost, none ends twice, and subscribers see no false gap.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    mesh::until,
    services::{ROLES, Services},
};

/// Faults of each service, in turn by kick, close, reset and stall.
const FAULTS: usize = 100;
/// The rate of new jobs while there are faults.
const JOBS_PER_S: u32 = 300;
/// How long a connection stalls.
const STALL: Duration = Duration::from_millis(400);
/// The pause between two faults of the same service.
const FAULT_PAUSE: Duration = Duration::from_millis(700);

/// Enqueues single jobs at a steady rate until `stop` is set; returns the ids that were accepted.
async fn load(services: &Services, stop: &AtomicBool) -> anyhow::Result<Vec<String>> {
    let begun = Instant::now();
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let mut requests = tokio::task::JoinSet::new();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = services.url("/api/queue/enqueue");
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep_until((begun + Duration::from_secs(1) * n / JOBS_PER_S).into()).await;
        let (client, url, accepted) = (client.clone(), url.clone(), accepted.clone());
        requests.spawn(async move {
            let body = json!({ "projectId": "p", "batchId": format!("b{n}") }).to_string();
            let key = format!("key-{n}");
            // An answer of 503 says that nothing is known: the same key makes a repeat harmless.
            loop {
                let request = client.post(&url).header("Idempotency-Key", &key).body(body.clone());
                if let Ok(answer) = request.send().await
                    && answer.status().is_success()
                    && let Ok(answer) = answer.json::<Value>().await
                {
                    let id = answer["jobId"].as_str().unwrap().to_owned();
                    return accepted.lock().unwrap().push(id);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        n += 1;
    }
    while let Some(ended) = requests.join_next().await {
        ended?;
    }
    Ok(Arc::into_inner(accepted).unwrap().into_inner()?)
}

/// Hurts the connection of one service again and again.
async fn hurt(services: &Services, role: &str, offset: usize) -> anyhow::Result<usize> {
    let proxy = &services.proxies[role];
    let mut kicked = 0;
    for n in 0..FAULTS {
        match (n + offset) % 4 {
            0 => kicked += services.cluster.kick(role).await?,
            1 => proxy.cut(),
            2 => proxy.reset(),
            _ => proxy.stall(STALL).await,
        }
        tokio::time::sleep(FAULT_PAUSE).await;
    }
    Ok(kicked)
}

/// Follows all changes until every job of `expected` is terminal, and again where it was too slow; counts the ends
/// of each.
async fn follow(
    services: &Services,
    expected: &Mutex<Option<usize>>,
) -> anyhow::Result<HashMap<String, usize>> {
    let mut ends: HashMap<String, usize> = HashMap::new();
    let mut last = "0.0".to_owned();
    let again = async |last: &str| {
        services.follow(&format!("/api/queue/events?projectId=p&after={last}")).await
    };
    let mut stream = again(&last).await?;
    let mut rest = String::new();
    'events: loop {
        if expected.lock().unwrap().is_some_and(|jobs| ends.len() >= jobs) {
            return Ok(ends);
        }
        let chunk = tokio::time::timeout(crate::mesh::PATIENCE, stream.chunk()).await??;
        let chunk = chunk.expect("the stream goes on");
        rest.push_str(std::str::from_utf8(&chunk)?);
        while let Some(end) = rest.find("\n\n") {
            let event: String = rest.drain(..end + 2).collect();
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            if let Some(id) = field("id: ") {
                last = id.to_owned();
            }
            match field("event: ") {
                Some("gap") => anyhow::bail!("a false event: {event}"),
                Some("lagged") => {
                    stream = again(&last).await?;
                    rest.clear();
                    continue 'events;
                }
                Some("completed" | "failed" | "canceled") => {
                    let data: Value = serde_json::from_str(field("data: ").unwrap())?;
                    *ends.entry(data["jobId"].as_str().unwrap().to_owned()).or_default() += 1;
                }
                _ => {}
            }
        }
    }
}

async fn survives_faults_of_its_connections(nodes: usize) -> anyhow::Result<()> {
    let services = Services::start(nodes, &[("JOBMESH_HANDLERS", "process_batch=noop")]).await?;
    let (stop, expected) = (AtomicBool::new(false), Mutex::new(None));
    let faults = async {
        let [state, metrics, processor, edge] = ROLES;
        let kicked = tokio::try_join!(
            hurt(&services, state, 0),
            hurt(&services, metrics, 1),
            hurt(&services, processor, 2),
            hurt(&services, edge, 3),
        );
        stop.store(true, Ordering::SeqCst);
        kicked
    };
    let loading = async {
        let accepted = load(&services, &stop).await?;
        *expected.lock().unwrap() = Some(accepted.len());
        anyhow::Ok(accepted)
    };
    let (kicked, mut accepted, ends) =
        tokio::try_join!(faults, loading, follow(&services, &expected))?;
    println!("{nodes} nodes: {} jobs accepted, connections kicked {kicked:?}", accepted.len());
    let at_least = FAULTS / 8;
    assert!([kicked.0, kicked.1, kicked.2, kicked.3].iter().all(|n| *n >= at_least), "{kicked:?}");
    accepted.sort_unstable();
    accepted.dedup();
    let jobs = accepted.len();
    assert!(jobs > 2_000, "too few jobs ran for the faults to meet any: {jobs}");
    for id in &accepted {
        assert_eq!(ends.get(id), Some(&1), "ends of {id}, as subscribers saw them");
    }
    until("counted alike by stats and metrics", async || {
        let counts = services.counts("p").await?;
        let (_, metrics) = services.get("/api/queue/metrics?projectId=p").await?;
        let rows =
            services.sql("SELECT countIf(final), uniqExactIf(job, final) FROM job_runs").await?;
        let alike = counts["completed"] == jobs
            && counts["totalJobs"] == jobs
            && metrics["stats"]["successful"] == jobs
            && rows == format!("{jobs}\t{jobs}");
        Ok(if alike {
            Ok(())
        } else {
            let errors = "SELECT error, count() FROM job_runs WHERE error != '' GROUP BY ALL";
            let errors = services.sql(errors).await?;
            Err(format!("{counts} {rows} {} {errors}", metrics["stats"]["total"]))
        })
    })
    .await?;
    for role in ROLES {
        let log = services.log(role);
        assert!(!log.contains("purged or deleted"), "{role} skipped messages:\n{log}");
        assert!(!log.contains("rows are missing"), "{role} skipped messages:\n{log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_lost_when_connections_to_one_server_fail() -> anyhow::Result<()> {
    survives_faults_of_its_connections(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_lost_when_connections_to_a_cluster_fail() -> anyhow::Result<()> {
    survives_faults_of_its_connections(3).await
}
