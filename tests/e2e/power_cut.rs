//! Ready work is acked before it is on disk. A broker that is killed loses the last moments of these
//! streams, and a power cut takes up to minutes of them. Missing runs are dispatched again, and no run is
//! executed twice.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    mesh::{Mesh, is_alive, send, until},
    receiver::Receiver,
};

/// Jobs that run while the power is cut.
const JOBS: usize = 2_000;
/// How often the broker is killed; with `JOBMESH_KILLS=200` for minutes.
const KILLS: usize = 4;

/// The folders of the streams of ready work in the broker's store.
fn work_streams(mesh: &Mesh) -> Vec<PathBuf> {
    let streams = mesh.data_dir().join("nats/jetstream/$G/streams");
    let streams = ["WORK_HIGH", "WORK_NORMAL", "WORK_LOW"].map(|name| streams.join(name));
    streams.into_iter().inspect(|stream| assert!(stream.is_dir(), "{}", stream.display())).collect()
}

/// Whether the file is one of a stream or consumer itself, which was synced when it was made.
fn is_definition(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "meta.inf" || name == "meta.sum")
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The content of the streams of ready work, at one moment.
fn content(mesh: &Mesh) -> anyhow::Result<HashMap<PathBuf, Vec<u8>>> {
    mesh.signal("nats-server", libc::SIGSTOP)?;
    let files = work_streams(mesh).iter().flat_map(|stream| files(stream)).collect::<Vec<_>>();
    let read = files.into_iter().filter(|file| !is_definition(file));
    let read: std::io::Result<_> =
        read.map(|file| fs::read(&file).map(|bytes| (file, bytes))).collect();
    mesh.signal("nats-server", libc::SIGCONT)?;
    Ok(read?)
}

/// Kills the broker, lets its streams of ready work have this content, and waits until it is back.
async fn cut_power(mesh: &Mesh, left: &HashMap<PathBuf, Vec<u8>>) -> anyhow::Result<()> {
    let killed = mesh.child("nats-server")?;
    // `dev` starts no broker until the store is as it should be.
    send(mesh.id(), libc::SIGSTOP)?;
    mesh.signal("nats-server", libc::SIGKILL)?;
    until("killed", async || Ok(if is_alive(killed) { Err("alive".into()) } else { Ok(()) }))
        .await?;
    for file in work_streams(mesh).iter().flat_map(|stream| files(stream)) {
        if !is_definition(&file) {
            fs::remove_file(file)?;
        }
    }
    for (file, bytes) in left {
        fs::write(file, bytes)?;
    }
    send(mesh.id(), libc::SIGCONT)?;
    until_restarted(mesh, killed).await
}

async fn until_restarted(mesh: &Mesh, killed: u32) -> anyhow::Result<()> {
    until("started again", async || {
        let now = mesh.child("nats-server")?;
        Ok(if now == killed { Err("not yet".into()) } else { Ok(()) })
    })
    .await
}

/// Jobs that take a moment each.
async fn enqueue(mesh: &Mesh, batch: &str, ms: u64) -> anyhow::Result<Vec<String>> {
    let batches: Vec<String> = (0..JOBS).map(|n| format!("{batch}-{n}")).collect();
    let work = || json!({ "do": "work", "ms": ms });
    let data: serde_json::Map<_, _> = batches.iter().map(|b| (b.clone(), work())).collect();
    let body = json!({ "projectId": "p", "batchIds": batches, "data": data });
    let answer = mesh.post("/api/queue/enqueue", body).await?;
    let ids = answer["jobIds"].as_array().into_iter().flatten();
    Ok(ids.filter_map(|id| id.as_str().map(str::to_owned)).collect())
}

async fn until_started(receiver: &Receiver, runs: usize) -> anyhow::Result<()> {
    until(&format!("{runs} started"), async || {
        let started = receiver.all().len();
        Ok(if started >= runs { Ok(()) } else { Err(format!("{started}")) })
    })
    .await
}

async fn until_completed(mesh: &Mesh, jobs: usize) -> anyhow::Result<()> {
    until("completed", async || {
        let counts = mesh.counts("p").await?;
        Ok(if counts["completed"] == jobs { Ok(()) } else { Err(counts.to_string()) })
    })
    .await
}

/// Each job was run once, whatever run that was.
fn check_once(receiver: &Receiver, jobs: &[String]) {
    let mut runs: HashMap<String, usize> = HashMap::new();
    receiver.all().into_iter().for_each(|run| *runs.entry(run.job).or_default() += 1);
    let repeated: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(repeated.is_empty(), "{} of {} ran again: {repeated:?}", repeated.len(), jobs.len());
    assert!(jobs.iter().all(|job| runs.contains_key(job)), "not all were run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_that_takes_ready_work_loses_no_job_and_runs_none_twice() -> anyhow::Result<()>
{
    let receiver = Receiver::start().await?;
    let mesh = receiver.mesh(&[("JOBMESH_PROCESSORS", "2")])?;
    let mut jobs = enqueue(&mesh, "first", 8).await?;
    until_started(&receiver, JOBS / 6).await?;
    // The streams fall back to what they had some time ago: runs that ended since are there again.
    let before = content(&mesh)?;
    let is_block = |file: &Path| file.extension().is_some_and(|extension| extension == "blk");
    let blocks = before.iter().filter(|(file, bytes)| is_block(file) && !bytes.is_empty());
    assert!(blocks.count() > 0, "no stream has anything to fall back to");
    until_started(&receiver, JOBS / 2).await?;
    cut_power(&mesh, &before).await?;
    until_completed(&mesh, JOBS).await?;
    jobs.extend(enqueue(&mesh, "second", 8).await?);
    until_started(&receiver, JOBS + JOBS / 3).await?;
    // Everything in them is lost, fences included.
    cut_power(&mesh, &HashMap::new()).await?;
    until_completed(&mesh, 2 * JOBS).await?;
    check_once(&receiver, &jobs);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_again_and_again_loses_no_job() -> anyhow::Result<()> {
    let kills = std::env::var("JOBMESH_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: usize = kills.unwrap_or(KILLS);
    let mesh = Mesh::start()?;
    let (mut jobs, mut interrupted) = (0, 0);
    for round in 0..kills {
        let killed = mesh.child("nats-server")?;
        jobs += enqueue(&mesh, &format!("round-{round}"), 0).await?.len();
        // At a random point: each process has random keys for its maps.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), round);
        let before_kill = jobs - JOBS + usize::try_from(random % 1_000)?;
        until("under way", async || {
            let completed = mesh.counts("p").await?["completed"].as_u64().unwrap_or(0);
            let is_due = completed >= before_kill as u64;
            Ok(if is_due { Ok(()) } else { Err(format!("{completed} of {before_kill}")) })
        })
        .await?;
        mesh.signal("nats-server", libc::SIGKILL)?;
        until_restarted(&mesh, killed).await?;
        let completed = mesh.counts("p").await.ok().and_then(|it| it["completed"].as_u64());
        interrupted += usize::from(completed.is_none_or(|completed| completed < jobs as u64));
        until_completed(&mesh, jobs).await?;
    }
    assert!(interrupted > 0, "all jobs had ended before each kill: nothing is shown");
    mesh.until_ended_once(jobs).await
}
