//! How long it takes from the answer to an enqueue until a handler has the job.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use processor::{Handler, JobType, Outcome, Registry, Work};

use super::{
    CONCURRENCY, PATIENCE, PICKUP_EVERY, PICKUP_JOBS, PICKUP_WARM_JOBS, load::Latencies, mesh::Mesh,
};

/// The name under which this program is the processor that is measured.
pub const PROGRAM: &str = "pickup-processor";

/// Says when it was given which job.
struct Stamp;

impl Handler for Stamp {
    async fn handle(&self, work: Arc<Work>, _: processor::Context) -> Outcome {
        println!("{} {}", work.job, now_ns());
        Outcome::Done { result: None, usage: processor::Usage::default() }
    }
}

/// Runs that processor.
pub fn serve() -> ExitCode {
    processor::main(Registry::new().with(JobType::ProcessBatch, Stamp))
}

/// Enqueues jobs at a steady pace and returns how long each waited behind its answer; less than
/// nothing where its handler was faster than the answer.
pub async fn measure(mesh: &Mesh, project: &str) -> anyhow::Result<Latencies> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(PROGRAM).stdout(Stdio::piped());
    let mut processor = mesh.spawn(command, CONCURRENCY)?;
    let stdout = processor.stdout.take().context("stdout is piped")?;
    let reader = std::thread::spawn(move || {
        let mut started = HashMap::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((job, at)) = line.split_once(' ')
                && let Ok(at) = at.parse::<i128>()
            {
                started.entry(job.to_owned()).or_insert(at);
            }
        }
        started
    });
    let processor = super::mesh::Processor::of(processor);
    mesh.until_processor(PATIENCE).await?;
    let mut connection = mesh.client().connect().await?;
    let mut tick = tokio::time::interval(PICKUP_EVERY);
    let mut answered = Vec::new();
    let jobs = PICKUP_WARM_JOBS + PICKUP_JOBS;
    for n in 0..jobs {
        tick.tick().await;
        let job = connection.enqueue_one(project, &format!("{n}")).await?;
        answered.push((job, now_ns()));
    }
    let done = async {
        while connection.count(Some(project), "completed").await? < jobs as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, done).await.context("not all jobs were run")??;
    processor.stop().await?;
    let started = reader.join().ok().context("the reader ends with its processor")?;
    ensure!(started.len() == jobs, "{} of {jobs} jobs were run", started.len());
    let waited = answered.iter().skip(PICKUP_WARM_JOBS).map(|(job, at)| {
        let started = started.get(job).with_context(|| format!("job {job} was not run"))?;
        Ok((started - at) as f64 / 1e6)
    });
    Ok(Latencies::new(waited.collect::<anyhow::Result<_>>()?))
}

/// Nanoseconds since 1970: the same clock in all processes of a machine.
fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}
