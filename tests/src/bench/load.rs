//! What is asked of the edge, and how long it takes.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::{sync::oneshot, task::JoinSet};

use super::{
    CALLERS, REQUEST_JOBS,
    client::{self, Client},
};

/// Latencies, in ms.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<f64>);

impl Latencies {
    pub fn new(mut ms: Vec<f64>) -> Self {
        ms.sort_unstable_by(f64::total_cmp);
        Self(ms)
    }

    fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    /// The value that this share of them does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Enqueues jobs over some projects in requests of [`REQUEST_JOBS`] or less; returns jobs a second,
/// to the last answer. No two requests name the same batch.
pub async fn bulk(client: &Client, projects: &[&str], jobs: usize) -> anyhow::Result<f64> {
    let each = (jobs / projects.len()).clamp(1, REQUEST_JOBS);
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let (requests, begun) = (jobs.div_ceil(each), Instant::now());
    let mut running = JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        let projects: Vec<String> = projects.iter().map(|&name| name.to_owned()).collect();
        running.spawn(async move {
            let mut connection = client.connect().await?;
            for n in (caller..requests).step_by(CALLERS) {
                let batches: Vec<String> =
                    (0..each).map(|job| format!("{stamp}-{n}-{job}")).collect();
                let body = client::many(&projects[n % projects.len()], &batches);
                connection.post("/api/queue/enqueue", &body).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok((requests * each) as f64 / begun.elapsed().as_secs_f64())
}

/// Enqueues jobs one a request from so many callers: jobs a second, and how long each took.
pub async fn singles(
    client: &Client,
    project: &str,
    callers: usize,
    jobs: usize,
) -> anyhow::Result<(f64, Latencies)> {
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for caller in 0..callers {
        let (client, project) = (client.clone(), project.to_owned());
        running.spawn(async move {
            let mut times = Vec::new();
            let mut connection = client.connect().await?;
            for n in 0..jobs / callers {
                let body = client::one(&project, &format!("{callers}-{caller}-{n}"));
                let asked = Instant::now();
                connection.post("/api/queue/enqueue", &body).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = running.join_next().await {
        times.extend(ended??);
    }
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    Ok((rate, Latencies::of(times)))
}

/// Enqueues jobs one by one, one per interval.
pub async fn steadily(
    client: &Client,
    project: &str,
    every: Duration,
    during: Duration,
) -> anyhow::Result<()> {
    let mut connection = client.connect().await?;
    let mut tick = tokio::time::interval(every);
    let begun = Instant::now();
    for n in 0.. {
        tick.tick().await;
        if begun.elapsed() > during {
            break;
        }
        connection.enqueue_one(project, &format!("b{n}")).await?;
    }
    Ok(())
}

/// Requests `paths` in turn, one per interval, for a while; returns the latencies by path.
pub async fn ask(
    client: &Client,
    paths: &[String],
    every: Duration,
    during: Duration,
) -> anyhow::Result<Vec<Latencies>> {
    let mut times = vec![Vec::new(); paths.len()];
    let mut connection = client.connect().await?;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let begun = Instant::now();
    while begun.elapsed() < during {
        for (path, times) in paths.iter().zip(&mut times) {
            tick.tick().await;
            let asked = Instant::now();
            connection.get(path).await?;
            times.push(asked.elapsed());
        }
    }
    Ok(times.into_iter().map(Latencies::of).collect())
}

/// Enqueues a job of `project` every so often until `work` ends: what came of it, and how long each answer took.
pub async fn enqueue_while<T>(
    client: &Client,
    project: &str,
    every: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, Latencies)> {
    let mut times = Vec::new();
    let mut connection = client.connect().await?;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let enqueued = async {
        for n in 0.. {
            tick.tick().await;
            let asked = Instant::now();
            connection.enqueue_one(project, &format!("b{n}")).await?;
            times.push(asked.elapsed());
        }
        anyhow::Ok(())
    };
    let done = tokio::select! {
        done = work => done?,
        failed = enqueued => anyhow::bail!("a job was not enqueued: {failed:?}"),
    };
    Ok((done, Latencies::of(times)))
}

/// Follows each of these batches of a project until its job has completed; returns when all have.
pub async fn hear_all(
    client: &Client,
    project: &str,
    batches: &[String],
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut hearing = JoinSet::new();
    for batch in batches {
        let mut connection = client.connect().await?;
        let path = format!("/api/queue/events?projectId={project}&batchId={batch}");
        connection.follow(&path).await?;
        hearing.spawn(async move {
            let mut heard = Vec::new();
            while !String::from_utf8_lossy(&heard).contains("event: completed") {
                connection.more(&mut heard).await?;
            }
            Ok(())
        });
    }
    Ok(hearing)
}

/// Followers of a project's events, on a thread of their own.
pub struct Followers {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl Followers {
    /// Starts them; ends once each of them follows.
    pub async fn start(client: &Client, project: &str, count: usize) -> anyhow::Result<Self> {
        let (client, path) = (client.clone(), format!("/api/queue/events?projectId={project}"));
        let (stop, stopped) = oneshot::channel();
        let (said, ready) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let followed = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                runtime.block_on(async {
                    let mut following = follow_all(&client, &path, count).await?;
                    // The caller may have stopped waiting.
                    let _ = said.send(());
                    tokio::select! {
                        _ = stopped => Ok(()),
                        Some(ended) = following.join_next() => ended?,
                    }
                })
            });
            let _ = end.send(followed);
        });
        match ready.await {
            Ok(()) => Ok(Self { stop, ended }),
            Err(_) => Err(ended.await?.err().context("they end before they follow")?),
        }
    }

    /// Stops them; each must have followed until now.
    pub async fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        self.ended.await?
    }
}

/// Followers that end only where their stream does.
async fn follow_all(
    client: &Client,
    path: &str,
    count: usize,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut following = JoinSet::new();
    for _ in 0..count {
        let mut connection = client.connect().await?;
        connection.follow(path).await?;
        following.spawn(async move {
            let mut heard = Vec::new();
            loop {
                connection.more(&mut heard).await?;
                heard.clear();
            }
        });
    }
    Ok(following)
}
