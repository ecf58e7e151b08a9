//! A mesh of two of each service on three NATS servers, under faults: nothing accepted is lost or ends twice, and
//! requests succeed again soon after NATS itself does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::DrainEnd;
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    mesh::{send, until},
    services::{ROLES, Services},
};

/// The variable with the rounds of the long trial.
const ROUNDS: &str = "JOBMESH_CLUSTER_ROUNDS";
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
/// The time between two requests.
const REQUEST_EVERY: Duration = Duration::from_millis(40);
/// How long a client waits for an answer, and before its one retry.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long the leader of a stream may take to answer.
const LEADER_ANSWERS_WITHIN: Duration = Duration::from_millis(300);
/// How much later than NATS itself requests may succeed again.
const LATER_THAN_NATS: Duration = Duration::from_secs(1);
/// How much longer everything may take beside other tests, which share the cores: not in the long trial.
const BUSY: Duration = Duration::from_secs(3);
/// How long a service stays with a server that does not answer.
const HALF_OPEN: Duration = Duration::from_secs(3);
/// How long requests may wait for another service: until the edge answers that a job is durable.
const TAKEOVER: Duration = Duration::from_secs(3);
/// Requests that are accepted after a fault before the next one.
const RECOVERED_AFTER: usize = 25;

/// Whether this is the long trial.
pub fn is_long() -> bool {
    std::env::var_os(ROUNDS).is_some()
}

/// When something last succeeded, and the longest time without a success.
#[derive(Default)]
struct Gaps(Mutex<Option<(Instant, Duration)>>);

impl Gaps {
    fn success(&self) {
        let mut gaps = self.0.lock().unwrap();
        let now = Instant::now();
        let longest = gaps.map_or(Duration::ZERO, |(last, longest)| longest.max(now - last));
        *gaps = Some((now, longest));
    }

    /// The longest time without a success since the last call.
    fn take(&self) -> Duration {
        self.success();
        self.0.lock().unwrap().replace((Instant::now(), Duration::ZERO)).expect("a success").1
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    accepted: AtomicUsize,
    /// Requests that failed, and failed again at the one retry.
    failed: AtomicUsize,
    gaps: Gaps,
    stop: AtomicBool,
}

/// Enqueues jobs at a steady rate at both edges in turn. A job that is not accepted is sent again until it is, so that
/// their number is known.
fn enqueue(services: &Services, seen: &Arc<Seen>) -> anyhow::Result<JoinHandle<()>> {
    let client = reqwest::Client::builder().no_proxy().timeout(CLIENT_PATIENCE).build()?;
    let urls: Vec<String> =
        services.edges.iter().map(|edge| edge.url("/api/queue/enqueue")).collect();
    let seen = seen.clone();
    Ok(tokio::spawn(async move {
        let mut requests = JoinSet::new();
        let mut interval = tokio::time::interval(REQUEST_EVERY);
        for n in 0_usize.. {
            if seen.stop.load(Ordering::SeqCst) {
                break;
            }
            interval.tick().await;
            let (client, urls, seen) = (client.clone(), urls.clone(), seen.clone());
            requests.spawn(async move {
                let body = json!({ "projectId": "p", "batchId": format!("b{n}") }).to_string();
                for attempt in 0_usize.. {
                    let url = &urls[(n + attempt) % urls.len()];
                    let key = format!("key-{n}");
                    let request = client.post(url).header("Idempotency-Key", key);
                    let answer = request.body(body.clone()).send().await;
                    if answer.is_ok_and(|answer| answer.status().is_success()) {
                        seen.accepted.fetch_add(1, Ordering::SeqCst);
                        return seen.gaps.success();
                    }
                    if attempt == 1 {
                        seen.failed.fetch_add(1, Ordering::SeqCst);
                    }
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            });
        }
        requests.join_all().await;
    }))
}

/// Asks the leaders of the streams that an enqueue needs, at every server, to know how long NATS itself has none.
async fn ask_leaders(services: &Services, gaps: &Arc<Gaps>) -> anyhow::Result<JoinSet<()>> {
    let mut asking = JoinSet::new();
    for node in 0..services.cluster.len() {
        let client = async_nats::connect(services.cluster.address(node)).await?;
        let gaps = gaps.clone();
        asking.spawn(async move {
            loop {
                let answers = ["COMMANDS", "EVENTS"].map(|stream| {
                    let subject = format!("$JS.API.STREAM.INFO.{stream}");
                    tokio::time::timeout(LEADER_ANSWERS_WITHIN, client.request(subject, "".into()))
                });
                let answers = futures_util::future::join_all(answers).await;
                let is_led = |answer: &Result<Result<async_nats::Message, _>, _>| {
                    let Ok(Ok(answer)) = answer else { return false };
                    let answer = serde_json::from_slice::<Value>(&answer.payload);
                    // Without a leader, other servers answer.
                    answer.is_ok_and(|answer| answer["cluster"]["leader"].is_string())
                };
                if answers.iter().all(is_led) {
                    gaps.success();
                }
                tokio::time::sleep(REQUEST_EVERY).await;
            }
        });
    }
    Ok(asking)
}

pub struct Trial {
    pub services: Services,
    seen: Arc<Seen>,
    nats: Arc<Gaps>,
    enqueuing: JoinHandle<()>,
    asking: JoinSet<()>,
    /// What was slower than it may be, or failed where nothing may.
    broken: Vec<String>,
}

/// A fault, and what clients may notice of it.
#[derive(Clone, Copy)]
pub struct Fault {
    name: &'static str,
    /// How long requests may fail in addition to NATS itself.
    added: Duration,
    /// How long services may take to notice the fault.
    noticed: Duration,
    /// Whether each request succeeds, at the latest at its one retry.
    is_planned: bool,
}

impl Fault {
    fn of_nats(name: &'static str) -> Self {
        Self { name, added: LATER_THAN_NATS, noticed: Duration::ZERO, is_planned: false }
    }

    /// A server that does not close its connections.
    pub fn half_open(name: &'static str) -> Self {
        Self { noticed: HALF_OPEN, ..Self::of_nats(name) }
    }

    fn planned(name: &'static str) -> Self {
        Self { added: TAKEOVER, is_planned: true, ..Self::of_nats(name) }
    }

    fn of_service(name: &'static str) -> Self {
        Self { added: TAKEOVER, ..Self::of_nats(name) }
    }
}

impl Trial {
    /// Begins to enqueue.
    pub async fn start(services: Services) -> anyhow::Result<Self> {
        let (seen, nats) = (Arc::<Seen>::default(), Arc::<Gaps>::default());
        let enqueuing = enqueue(&services, &seen)?;
        let asking = ask_leaders(&services, &nats).await?;
        println!(
            "| fault | accepted | failed at the one retry | longest without success, s | of NATS, s |"
        );
        Ok(Self { services, seen, nats, enqueuing, asking, broken: Vec::new() })
    }

    /// Ends, once each accepted job has ended once; fails if a fault cost more than it may.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.seen.stop.store(true, Ordering::SeqCst);
        (&mut self.enqueuing).await?;
        self.asking.abort_all();
        self.check_jobs().await?;
        println!("{} jobs accepted, each ended once", self.accepted());
        assert!(self.broken.is_empty(), "{}", self.broken.join("\n"));
        Ok(())
    }

    /// Measures a fault from its beginning until all is as before.
    pub async fn fault(
        &mut self,
        fault: Fault,
        act: impl AsyncFnOnce(&mut Services) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (before, failed) = (self.accepted(), self.seen.failed.load(Ordering::SeqCst));
        self.seen.gaps.take();
        self.nats.take();
        act(&mut self.services).await?;
        self.until_recovered().await?;
        let (gap, nats) = (self.seen.gaps.take(), self.nats.take());
        let failed = self.seen.failed.load(Ordering::SeqCst) - failed;
        let row = format!(
            "| {} | {} | {failed} | {:.1} | {:.1} |",
            fault.name,
            self.accepted() - before,
            gap.as_secs_f64(),
            nats.as_secs_f64()
        );
        println!("{row}");
        let busy = if is_long() { Duration::ZERO } else { BUSY };
        let allowed = nats.max(fault.noticed) + fault.added + busy;
        if gap > allowed || (fault.is_planned && failed > 0) {
            self.broken.push(row);
        }
        Ok(())
    }

    /// Waits until everything is there, each stream has three copies, and requests are accepted.
    async fn until_recovered(&self) -> anyhow::Result<()> {
        let services = &self.services;
        services.until_complete().await?;
        services.cluster.until_current().await?;
        until("three copies", async || {
            let (_, answer) = services.get("/readyz").await?;
            Ok(if answer["spareServers"] == 1 { Ok(()) } else { Err(answer.to_string()) })
        })
        .await?;
        let later = self.accepted() + RECOVERED_AFTER;
        until("accepting", async || {
            let accepted = self.accepted();
            Ok(if accepted >= later { Ok(()) } else { Err(accepted.to_string()) })
        })
        .await
    }

    fn accepted(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst)
    }

    async fn faults_of_nats(&mut self) -> anyhow::Result<()> {
        let killed = Fault::of_nats("kill -9 of the server that leads all streams");
        self.fault(killed, async |services| {
            services.cluster.lead_with(0).await?;
            services.cluster.kill(0)?;
            services.cluster.restart(0)
        })
        .await?;
        let frozen = Fault::half_open("SIGSTOP of that server for 8 s");
        self.fault(frozen, async |services| {
            services.cluster.lead_with(1).await?;
            let id = services.cluster.id(1);
            send(id, SIGSTOP)?;
            // The length of the fault.
            tokio::time::sleep(Duration::from_secs(8)).await;
            send(id, SIGCONT)
        })
        .await?;
        let stepped_down = Fault::planned("all leaders of streams step down");
        self.fault(stepped_down, async |services| services.cluster.lead_with(2).await).await?;
        let follower = Fault::planned("kill -9 of a server that leads nothing");
        self.fault(follower, async |services| {
            services.cluster.kill(0)?;
            services.cluster.restart(0)
        })
        .await?;
        let kicked = Fault::of_service("every connection of a service is closed");
        self.fault(kicked, async |services| {
            for role in ROLES {
                services.cluster.kick(role).await?;
            }
            Ok(())
        })
        .await?;
        for end in [DrainEnd::Stopped, DrainEnd::ByItself] {
            let drained = Fault::planned(match end {
                DrainEnd::Stopped => "lame duck, stop and start of a server",
                DrainEnd::ByItself => "lame duck to its end, and start of a server",
            });
            // Up to half a minute each.
            let nodes = if end == DrainEnd::Stopped || is_long() { 3 } else { 1 };
            for node in 0..nodes {
                let drain = async |services: &mut Services| {
                    services.cluster.drain_and_restart(node, end).await
                };
                self.fault(drained, drain).await?;
            }
        }
        Ok(())
    }

    async fn faults_of_services(&mut self) -> anyhow::Result<()> {
        let leader = Fault::of_service("kill -9 of the leading state service");
        self.fault(leader, async |services| {
            let leader = services.leading_state()?;
            services.signal(leader, SIGKILL)?;
            services.restart(leader)
        })
        .await?;
        for name in ["edge", "processor", "metrics"] {
            let killed = Fault::of_service(match name {
                "edge" => "kill -9 of an edge",
                "processor" => "kill -9 of a processor",
                _ => "kill -9 of a metrics service",
            });
            self.fault(killed, async |services| {
                services.signal(name, SIGKILL)?;
                services.restart(name)
            })
            .await?;
        }
        for role in ROLES {
            for name in [role.to_owned(), format!("{role}-2")] {
                let restarted = Fault::planned(match role {
                    "state" => "SIGTERM and start of a state service",
                    "edge" => "SIGTERM and start of an edge",
                    "processor" => "SIGTERM and start of a processor",
                    _ => "SIGTERM and start of a metrics service",
                });
                self.fault(restarted, async |services| {
                    services.signal(&name, SIGTERM)?;
                    services.restart(&name)
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Every accepted job ended exactly once, as stats and the rows in ClickHouse show.
    async fn check_jobs(&self) -> anyhow::Result<()> {
        let accepted = self.accepted();
        let services = &self.services;
        until("each job ended once", async || {
            let stats = services.counts("p").await?;
            let rows = "SELECT countIf(final), uniqExactIf(job, final) FROM job_runs";
            let rows = services.sql(rows).await?;
            let is_so = stats["completed"] == accepted && rows == format!("{accepted}\t{accepted}");
            Ok(if is_so { Ok(()) } else { Err(format!("{stats} {rows} of {accepted}")) })
        })
        .await
    }
}

/// `JOBMESH_CLUSTER_ROUNDS` repeats the faults.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_survives_the_faults_of_its_cluster() -> anyhow::Result<()> {
    let rounds = std::env::var(ROUNDS).map_or(Ok(1), |rounds| rounds.parse())?;
    let services = Services::start_pairs(&[("JOBMESH_HANDLERS", "process_batch=noop")]).await?;
    let mut trial = Trial::start(services).await?;
    for _ in 0_u32..rounds {
        trial.faults_of_nats().await?;
        trial.faults_of_services().await?;
    }
    trial.end().await
}
