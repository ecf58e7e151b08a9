//! Jobs that are run, from a full queue and as they come.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{
    CONCURRENCY, PATIENCE, load,
    mesh::{Mesh, Usage},
};

/// How often it is asked how far a drain is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a drain went.
#[derive(Debug)]
pub struct Drained {
    /// Jobs a second, from the first end to the last.
    pub rate: f64,
    /// What each process had taken when it began, and when it ended.
    pub usage: [Vec<Usage>; 2],
}

/// Starts a processor and waits until it has run all `jobs`. Each must have ended once.
pub async fn all(mesh: &Mesh, jobs: usize) -> anyhow::Result<Drained> {
    let before = mesh.client().count(None, "completed").await?;
    let drained = some(mesh, jobs, CONCURRENCY).await?;
    let done = mesh.client().count(None, "completed").await? - before;
    ensure!(done == jobs as u64, "{done} jobs ended, {jobs} were accepted");
    Ok(drained)
}

/// Starts a processor with this number of slots and stops it once it has run `jobs` or more.
pub async fn some(mesh: &Mesh, jobs: usize, slots: usize) -> anyhow::Result<Drained> {
    let mut connection = mesh.client().connect().await?;
    let before = connection.count(None, "completed").await?;
    let processor = mesh.start_processor_with(slots)?;
    let usage = mesh.usage(Some(&processor))?;
    let mut first = None;
    let begun = Instant::now();
    let rate = loop {
        let done = connection.count(None, "completed").await? - before;
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
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let usage = [usage, mesh.usage(Some(&processor))?];
    processor.stop().await?;
    Ok(Drained { rate, usage })
}

/// Enqueues and runs jobs at the same time; the rate is that from the first request to the row of
/// the last one's end.
pub async fn whole_life(mesh: &Mesh, project: &str, jobs: usize) -> anyhow::Result<Drained> {
    let processor = mesh.start_processor()?;
    mesh.until_processor(PATIENCE).await?;
    let usage = mesh.usage(Some(&processor))?;
    let begun = Instant::now();
    load::bulk(mesh.client(), &[project], jobs).await?;
    let mut connection = mesh.client().connect().await?;
    // Asked of state, for that costs little: metrics scans the engine for each answer.
    while connection.count(Some(project), "completed").await? < jobs as u64 {
        ensure!(begun.elapsed() < PATIENCE, "not all were completed");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    while mesh.client().rows_of(project).await? < jobs as u64 {
        ensure!(begun.elapsed() < PATIENCE, "not all rows came");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    let usage = [usage, mesh.usage(Some(&processor))?];
    processor.stop().await?;
    Ok(Drained { rate, usage })
}
