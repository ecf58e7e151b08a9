//! What copies on three servers cost, and many processors and edges.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use job::{JobType, PriorityClass};
use nats::{
    Broker,
    consumer::Pullers,
    heartbeat::{self, Heartbeat},
    names,
    stream_reader::StreamReader,
};
use testkit::Cluster;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    ROUNDS, drain, load, median_by,
    mesh::{Durability, Mesh, Usage},
    report::Report,
};

/// Jobs of a drain, and of single enqueues, on one and on three servers.
const JOBS: usize = 20_000;
const SINGLES: usize = 5_000;
const CALLERS: usize = 64;
/// Bare messages, their bytes, and how many of them have no answer yet in the second kind of loop.
const BARE_MESSAGES: usize = 20_480;
const BARE_BYTES: usize = 300;
const BARE_UNANSWERED: usize = 1_024;
/// The share of the rate of one server that three must reach.
const KEPT: f64 = 0.7;
/// Edges that follow EVENTS, and processors that wait.
const EDGES: usize = 50;
const PROCESSORS: usize = 1_000;
/// How often a job is enqueued meanwhile, and for how long the broker is watched.
const EVERY: Duration = Duration::from_millis(10);
const WATCHED: Duration = Duration::from_secs(20);
const SLOTS: usize = 64;

/// Compares three servers that keep three copies with one that keeps one. All of them share the cores of this machine.
pub async fn replicas(report: &mut Report) -> anyhow::Result<()> {
    for durability in [Durability::Always, Durability::Fast] {
        compare_replicas(report, durability).await?;
    }
    Ok(())
}

async fn compare_replicas(report: &mut Report, durability: Durability) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        // Each side comes first as often as second.
        rounds.push(if round % 2 == 0 {
            let one = on(1, durability).await?;
            (one, on(3, durability).await?)
        } else {
            let three = on(3, durability).await?;
            (on(1, durability).await?, three)
        });
    }
    let name = durability.name();
    for (what, of) in [("drain", 0), ("single enqueue, 64 callers", 1)] {
        let (one, three) = median_by(rounds.clone(), |(one, three)| three[of] / one[of]);
        report.rate(&format!("{what}, {name}, one server"), one[of]);
        report.rate(&format!("{what}, {name}, three servers"), three[of]);
        let what = format!("{what}, {name}: three servers against one");
        report.ratio(&what, Some(three[of]), Some(one[of]), KEPT);
    }
    // What NATS itself keeps on this machine.
    for (what, of) in [("bare publishes, 1,024 unanswered", 2), ("bare publishes, 64 callers", 3)] {
        let (one, three) = median_by(rounds.clone(), |(one, three)| three[of] / one[of]);
        let what = format!("{what}, {name}: three servers against one");
        report.share(&what, three[of], one[of]);
    }
    Ok(())
}

/// The rates of a drain and of single enqueues, and of bare publishes with as many answers outstanding.
async fn on(servers: usize, durability: Durability) -> anyhow::Result<[f64; 4]> {
    let sync = match durability {
        Durability::Fast => "1s",
        Durability::Always => "always",
    };
    let cluster = Cluster::start_syncing(servers, sync).await?;
    let url = format!("nats://{}", cluster.address(0));
    let mesh = Mesh::start_with(durability, &["--nats-url", &url]).await?;
    load::bulk(mesh.client(), &["drain"], JOBS).await?;
    let drained = drain::all(&mesh, JOBS).await?;
    mesh.check_once("drain", JOBS as u64).await?;
    let (singles, _) = load::singles(mesh.client(), "singles", CALLERS, SINGLES).await?;
    mesh.stop().await?;
    let bare = [BARE_UNANSWERED, CALLERS].map(|callers| publish_bare(&url, servers, callers));
    let [pipelined, answered] = bare;
    Ok([drained.rate, singles, pipelined.await?, answered.await?])
}

/// The rate at which callers publish messages one by one to a stream with a copy on each server, each waiting for its
/// answers.
async fn publish_bare(url: &str, servers: usize, callers: usize) -> anyhow::Result<f64> {
    let client = async_nats::connect(url).await?;
    let jetstream = async_nats::jetstream::new(client);
    let name = format!("BARE_{callers}");
    let config = async_nats::jetstream::stream::Config {
        name: name.clone(),
        num_replicas: servers,
        ..Default::default()
    };
    jetstream.create_stream(config).await?;
    let began = Instant::now();
    let mut publishing = JoinSet::new();
    for _ in 0..callers {
        let (jetstream, name) = (jetstream.clone(), name.clone());
        publishing.spawn(async move {
            for _ in 0..BARE_MESSAGES / callers {
                let payload = vec![b'x'; BARE_BYTES].into();
                jetstream.publish(name.clone(), payload).await?.await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    Ok(BARE_MESSAGES as f64 / began.elapsed().as_secs_f64())
}

/// What followers and processors that wait cost the broker, at 100 jobs a second.
pub async fn followers(report: &mut Report) -> anyhow::Result<()> {
    let mesh = Mesh::start(Durability::Fast).await?;
    let processor = mesh.start_processor_with(SLOTS)?;
    mesh.until_processor(super::PATIENCE).await?;
    watch(&mesh, report, "100 jobs/s").await?;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut running = JoinSet::new();
    let last =
        Broker::connect(mesh.nats_url(), "bench").await?.last_sequence(names::EVENTS).await?;
    for _ in 0..EDGES {
        let broker = Broker::connect(mesh.nats_url(), "follower").await?;
        let mut events = StreamReader::start(broker, names::EVENTS, last + 1, stop.clone());
        running.spawn(async move { while events.recv().await.is_ok() {} });
    }
    watch(&mesh, report, "and 50 edges that follow").await?;
    let broker = Broker::connect(mesh.nats_url(), "processors").await?;
    wait_for_work(&broker, &mut running).await?;
    let waiting = until_waiting(&broker).await?;
    watch(&mesh, report, "and 1,000 processors that wait").await?;
    report.labels("processors", format!("{waiting} wait for work of one kind; none was refused"));
    let refused = running.try_join_next();
    ensure!(refused.is_none(), "a follower or a processor ended");
    running.shutdown().await;
    processor.stop().await?;
    mesh.stop().await
}

/// The broker's share of a core, and its memory, while jobs come and end.
async fn watch(mesh: &Mesh, report: &mut Report, what: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    let before = broker_of(mesh)?;
    load::steadily(mesh.client(), what, EVERY, WATCHED).await?;
    let after = broker_of(mesh)?;
    let share = (after.cpu_us - before.cpu_us) as f64 / began.elapsed().as_micros() as f64;
    report.process(&format!("the broker, {what}"), share * 100.0, after.rss_mb);
    Ok(())
}

fn broker_of(mesh: &Mesh) -> anyhow::Result<Usage> {
    let usage = mesh.usage(None)?;
    usage.into_iter().find(|usage| usage.name.starts_with("nats-server")).context("a broker runs")
}

/// Processors without capacity: they wait for work of a class that has none, and report every two seconds.
async fn wait_for_work(broker: &Broker, running: &mut JoinSet<()>) -> anyhow::Result<()> {
    for n in 0..PROCESSORS {
        let broker = broker.clone();
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let said = Heartbeat {
            processor: format!("bench-{n}").into(),
            job_types: vec![JobType::ProcessBatch],
            ..Heartbeat::default()
        };
        running.spawn(async move {
            let body = serde_json::to_vec(&said).expect("a heartbeat is JSON");
            let mut period = tokio::time::interval(heartbeat::PERIOD);
            let waiting = async {
                loop {
                    if pullers.wait(PriorityClass::High, JobType::ProcessBatch).await.is_err() {
                        return;
                    }
                }
            };
            let reporting = async {
                loop {
                    period.tick().await;
                    let subject = names::heartbeat(&said.processor);
                    if broker.client.publish(subject, body.clone().into()).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { () = waiting => {}, () = reporting => {} }
        });
    }
    Ok(())
}

/// Waits until the broker knows that all of them wait.
async fn until_waiting(broker: &Broker) -> anyhow::Result<usize> {
    let stream = broker.js.get_stream(names::work_stream(PriorityClass::High)).await?;
    let name = names::work_consumer(JobType::ProcessBatch);
    let began = Instant::now();
    loop {
        let info = stream.consumer_info(name).await?;
        if info.num_waiting >= PROCESSORS {
            return Ok(info.num_waiting);
        }
        ensure!(began.elapsed() < super::PATIENCE, "only {} may wait", info.num_waiting);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
