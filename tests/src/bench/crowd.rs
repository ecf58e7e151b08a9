//! What others notice of one API key with thousands of connections, of connections that never finish their
//! request, and of a project that enqueues beyond its limits.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::json;
use tokio::{io::AsyncWriteExt, sync::oneshot, task::JoinSet};

use super::{
    TIMED, UNDER_LOAD_EVERY,
    client::{self, Client},
    load::{self, Latencies},
    mesh::{Durability, Mesh},
    report::{Goal, Report},
};

/// Connections that never finish their request, and how often each sends a byte.
const SLOW: u32 = 2_000;
const BYTE_EVERY: Duration = Duration::from_secs(1);
/// Requests with `wait`, and event streams, of one key.
const WAITING: usize = 5_000;
/// How soon a request that is refused is answered.
const REFUSED_WITHIN: Duration = Duration::from_millis(10);
/// The address of the crowd: the edge limits the connections of each address.
const CROWD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Callers that enqueue jobs of a project that is at its limit.
const GREEDY_CALLERS: usize = 4;
/// The share of its rate that another project must keep.
const KEPT: f64 = 0.95;

/// Measures both.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let mesh = Mesh::start(Durability::Fast).await?;
    let plain = mesh.client();
    let root = plain.with_key(&make_key(plain, "root").await?);
    let crowd = plain.with_key(&make_key(&root, "crowd").await?).from(CROWD);
    for project in ["crowd", "others", "greedy"] {
        root.set(project, json!({ "paused": true })).await?;
    }
    let job = root.connect().await?.enqueue_one("crowd", "first").await?;
    let idle = others(&root, report, "others alone").await?;
    let (answered, waiting) = {
        let crowd = Crowd::start(&crowd, &job).await?;
        let during = others(&root, report, "others with the crowd").await?;
        let usage = mesh.usage(None)?;
        let edge = usage.iter().find(|usage| usage.name == "edge").context("an edge runs")?;
        report.memory("with the crowd", std::slice::from_ref(edge), [None; 2]);
        (during, crowd.waiting)
    };
    report
        .labels("crowd", format!("{waiting} of {} requests that wait were accepted", 2 * WAITING));
    for (n, what) in ["stats", "status", "enqueue"].into_iter().enumerate() {
        let (idle, during) = (idle[n].quantile(0.99), answered[n].quantile(0.99));
        let what = format!("{what} of others with the crowd, p99, at most twice that alone");
        report.ms(&what, during, Some(Goal::AtMost(2.0 * idle)));
    }
    root.set("greedy", json!({ "maxActiveJobs": 100 })).await?;
    let alone = steady_rate(&root).await?;
    let mut greedy = JoinSet::new();
    for caller in 0..GREEDY_CALLERS {
        let root = root.clone();
        greedy.spawn(async move {
            let mut connection = root.connect().await?;
            let mut refused = 0_u64;
            for n in 0_u64.. {
                let body = client::one("greedy", &format!("{caller}-{n}"));
                let answer = connection.ask("POST", "/api/queue/enqueue", &body).await?;
                refused += u64::from(answer.status == 429);
                if n % 100 == 99 {
                    anyhow::ensure!(refused > 0, "the limit does not hold");
                }
            }
            anyhow::Ok(())
        });
    }
    let beside = steady_rate(&root).await?;
    greedy.abort_all();
    while let Some(ended) = greedy.join_next().await {
        match ended {
            Err(error) if error.is_cancelled() => {}
            ended => ended??,
        }
    }
    report.rate("enqueue of others, 200 a second wanted", alone);
    report.rate("enqueue of others with a greedy project, 200 a second wanted", beside);
    let what = "enqueue of others with a greedy project against alone";
    report.ratio(what, Some(beside), Some(alone), KEPT);
    mesh.stop().await
}

async fn make_key(client: &Client, name: &str) -> anyhow::Result<String> {
    let new = json!({ "name": name, "scope": "admin" }).to_string();
    let made = client.connect().await?.post("/api/keys", &new).await?.json()?;
    Ok(made["secret"].as_str().context("a new key is shown")?.to_owned())
}

/// How long stats, status and enqueue take for others.
async fn others(
    client: &Client,
    report: &mut Report,
    what: &str,
) -> anyhow::Result<[Latencies; 3]> {
    let job = client.connect().await?.enqueue_one("others", "asked for").await?;
    let paths = ["/api/queue/stats".to_owned(), format!("/api/queue/status/{job}")];
    let asked = load::ask(client, &paths, UNDER_LOAD_EVERY, TIMED);
    let (found, enqueue) = load::enqueue_while(client, "others", UNDER_LOAD_EVERY, asked).await?;
    let [stats, status]: [Latencies; 2] =
        found.try_into().ok().context("two paths were asked for")?;
    for (path, times) in [("stats", &stats), ("status", &status), ("enqueue", &enqueue)] {
        report.latency(&format!("{path}, {what}"), times, [None; 2]);
    }
    Ok([stats, status, enqueue])
}

/// The rate of one caller that enqueues a job every 5 ms.
async fn steady_rate(client: &Client) -> anyhow::Result<f64> {
    let mut connection = client.connect().await?;
    let mut tick = tokio::time::interval(UNDER_LOAD_EVERY);
    let (started, mut count) = (Instant::now(), 0_u32);
    while started.elapsed() < TIMED {
        tick.tick().await;
        connection.enqueue_one("others", &format!("steady-{count}")).await?;
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

/// All those connections, on a thread of their own. They are closed when it is dropped.
struct Crowd {
    /// How many requests that wait were accepted.
    waiting: u32,
    _stop: oneshot::Sender<()>,
}

impl Crowd {
    /// Opens the connections; each request that waits is sent once.
    async fn start(client: &Client, job: &str) -> anyhow::Result<Self> {
        let (client, job) = (client.clone(), job.to_owned());
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, waiting) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let gathered = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                runtime.block_on(async {
                    let mut all = JoinSet::new();
                    let waiting = gather(&client, &job, &mut all).await?;
                    // The receiver may have failed.
                    let _ = started.send(waiting);
                    let _ = stopped.await;
                    anyhow::Ok(())
                })
            });
            if let Err(error) = gathered {
                eprintln!("the crowd failed: {error:#}");
            }
        });
        let waiting = waiting.await.context("the crowd gathers")?;
        Ok(Self { waiting, _stop: stop })
    }
}

/// Opens the connections; returns how many of the requests that wait were accepted.
async fn gather(client: &Client, job: &str, all: &mut JoinSet<()>) -> anyhow::Result<u32> {
    for n in 0..SLOW {
        let client = client.clone();
        all.spawn(async move {
            // Else all of them would send in the same moment.
            tokio::time::sleep(BYTE_EVERY * n / SLOW).await;
            loop {
                // The edge closes it; the client connects again.
                let _ = slow_request(&client).await;
                tokio::time::sleep(BYTE_EVERY).await;
            }
        });
    }
    let mut waiting = 0;
    let stream = "/api/queue/events?projectId=crowd".to_owned();
    let poll = format!("/api/queue/status/{job}?wait=60s");
    for n in 0..2 * WAITING {
        let mut connection = client.connect().await?;
        if n % 2 == 0 {
            // Its answer tells whether it was accepted.
            if connection.follow(&stream).await.is_err() {
                continue;
            }
        } else {
            connection.send("GET", &poll, "").await?;
            let refused = tokio::time::timeout(REFUSED_WITHIN, connection.read_head());
            if refused.await.is_ok() {
                continue;
            }
        }
        waiting += 1;
        all.spawn(async move {
            let mut received = Vec::new();
            while connection.more(&mut received).await.is_ok() {
                received.clear();
            }
        });
    }
    Ok(waiting)
}

/// A request whose head comes byte by byte.
async fn slow_request(client: &Client) -> anyhow::Result<()> {
    let mut stream = client.open().await?;
    for byte in b"GET /api/queue/stats HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().cycle() {
        stream.write_all(&[*byte]).await?;
        tokio::time::sleep(BYTE_EVERY).await;
    }
    Ok(())
}
