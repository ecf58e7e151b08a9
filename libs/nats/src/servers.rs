//! Which server of a cluster a client is connected to: one that reaches the leaders of the streams, and the nearest of
//! them.
//!
//! async-nats connects to any server of its list, and to another one only after it has lost the connection. A server that is
//! cut off from another one keeps its connections, but does not reach the streams that the other one leads.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, ReconnectToServer, ServerAddr, connection::State};
use futures_util::{StreamExt, future, stream::FuturesUnordered};
use job::PriorityClass;
use serde::{Deserialize, de::IgnoredAny};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{access::Access, names};

/// How long writes may fail before other servers are asked.
const FAILING_FOR: Duration = Duration::from_secs(1);
/// How long the leader of a stream has to answer.
const LEADER_WITHIN: Duration = Duration::from_millis(500);
/// How long it may take to connect to another server.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The time between two looks at other servers while none is better: at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often one of the streams is asked for, whether writes fail or not.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// When the nearest server is looked for, after a connection was made; and again as long as one does not answer, at first and
/// at most.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const RETURN_AFTER: Duration = Duration::from_secs(20);
const RETURN_AFTER_MAX: Duration = Duration::from_secs(600);
/// How often each server is connected to for its distance, of which the least counts.
const MEASURES: usize = 3;
/// A server is nearer if it takes less than half the time, and this much less: all servers of a place are as near.
const NEARER_BY: Duration = Duration::from_millis(3);

/// What a client knows about its servers.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    /// The server to connect to next, if one was chosen.
    next: Mutex<Option<ServerAddr>>,
    /// When writes began to fail, in a row.
    failing_since: Mutex<Option<Instant>>,
    /// Told when writes have failed for a while.
    fails: Notify,
    /// Told when the server of the connection stops.
    stops: Notify,
}

impl Servers {
    /// Notes that a write that began at `began` was not stored, which may be due to the server.
    pub(crate) fn note_failure(&self, began: Instant) {
        if lock(&self.failing_since).get_or_insert(began).elapsed() >= FAILING_FOR {
            self.fails.notify_one();
        }
    }

    /// Notes that the leader of a stream has answered a write.
    pub(crate) fn note_answer(&self) {
        *lock(&self.failing_since) = None;
    }

    /// Notes that the server of the connection lets its clients go.
    pub(crate) fn note_lame_duck(&self) {
        self.stops.notify_one();
    }

    /// The chosen server, once: if it cannot be connected to, the next is the client's own choice.
    pub(crate) fn take_next(&self) -> Option<ReconnectToServer> {
        let addr = lock(&self.next).take()?;
        Some(ReconnectToServer { addr, delay: Some(Duration::ZERO) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client, and what it needs to connect to other servers.
pub(crate) struct Watch {
    pub client: Client,
    pub servers: Arc<Servers>,
    pub access: Access,
    pub name: String,
    /// Counts the connections.
    pub connects: watch::Receiver<u64>,
}

/// A server that was connected to for a look.
struct Look {
    address: ServerAddr,
    /// The server's own id: it can have several addresses.
    id: String,
    took: Duration,
    client: Client,
}

/// Why a client leaves its server.
enum Reason {
    Unreached { reached: usize },
    LameDuck,
    Nearer { from: Duration, to: Duration },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreached { reached } => {
                let all = streams().len();
                write!(f, "the old one reaches the leaders of {reached} of {all} streams")
            }
            Self::LameDuck => f.write_str("the old one stops"),
            Self::Nearer { from, to } => {
                let (from, to) = (from.as_millis(), to.as_millis());
                write!(f, "the new one is nearer: connecting takes {to} ms instead of {from} ms")
            }
        }
    }
}

/// The streams whose leaders jobs need.
fn streams() -> Vec<String> {
    let leases = format!("KV_{}", names::LEASES);
    let others = [names::COMMANDS, names::EVENTS, names::JOBS_STREAM, &leases];
    let work = PriorityClass::ALL.map(names::work_stream);
    others.into_iter().chain(work).map(str::to_owned).collect()
}

/// Whether the leader of a stream answers a client.
async fn reaches(client: &Client, stream: &str) -> bool {
    let asked = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
    let Ok(Ok(answer)) = timeout(LEADER_WITHIN, asked).await else { return false };
    serde_json::from_slice(&answer.payload).is_ok_and(|info: Info| info.has_leader())
}

/// What is asked of the answer about a stream.
#[derive(Deserialize)]
struct Info {
    error: Option<IgnoredAny>,
    cluster: Option<Placed>,
}

#[derive(Deserialize)]
struct Placed {
    leader: Option<String>,
}

impl Info {
    /// Whether there is a leader: without one, other servers answer.
    fn has_leader(&self) -> bool {
        let is_led = self.cluster.as_ref().is_none_or(|placed| placed.leader.is_some());
        self.error.is_none() && is_led
    }
}

/// Of how many streams the leaders answer a client.
async fn count_reached(client: &Client) -> usize {
    let streams = streams();
    let answers = streams.iter().map(|stream| reaches(client, stream));
    future::join_all(answers).await.into_iter().filter(|answers| *answers).count()
}

/// When to look at other servers.
struct Plan {
    connected_at: Instant,
    /// When the nearest server is looked for, after the connection was made; `None` if that is done.
    nearest_after: Option<Duration>,
    /// No other server was better before this.
    pause_until: Instant,
    pause: Duration,
}

impl Plan {
    fn new() -> Self {
        let now = Instant::now();
        let nearest_after = Some(SETTLED_AFTER + jitter());
        Self { connected_at: now, nearest_after, pause_until: now, pause: PAUSE }
    }

    /// Completes when the nearest server is to be looked for.
    async fn nearest(&self) {
        match self.nearest_after {
            None => future::pending().await,
            Some(after) => sleep_until((self.connected_at + after).into()).await,
        }
    }

    fn look_later(&mut self) {
        self.pause_until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn look_for_nearest_later(&mut self) {
        let next = (self.connected_at.elapsed() * 2).clamp(RETURN_AFTER, RETURN_AFTER_MAX);
        self.nearest_after = Some(self.connected_at.elapsed() + next);
    }
}

/// Up to a second, so that not all clients do the same at once.
fn jitter() -> Duration {
    Duration::from_millis(u64::from(Uuid::new_v4().as_bytes()[0]) * 4)
}

impl Watch {
    /// Watches the connection until `stop` is done.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let streams = streams();
        let mut turns = streams.iter().cycle();
        let mut plan = Plan::new();
        let mut heard = None;
        // The server that was to be connected to because it is nearer.
        let mut wanted = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.connects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.servers.note_answer();
                    (plan, heard) = (Plan::new(), None);
                }
                () = self.servers.stops.notified() => {
                    sleep(jitter()).await;
                    if let Some(other) = self.find_better_than(0).await {
                        self.go_to(other, &Reason::LameDuck).await;
                    }
                }
                () = self.servers.fails.notified() => {
                    if Instant::now() >= plan.pause_until {
                        self.check(&mut plan, &mut heard).await;
                    }
                }
                () = sleep(LOOK_EVERY) => {
                    let stream = turns.next().expect("there are streams");
                    if self.is_alone().await || reaches(&self.client, stream).await {
                        plan.pause = PAUSE;
                    } else if Instant::now() >= plan.pause_until {
                        self.check(&mut plan, &mut heard).await;
                    }
                }
                () = plan.nearest() => {
                    plan.nearest_after = None;
                    let own = self.id();
                    // Behind an address that leads to several servers there is no choice.
                    if wanted.take().is_some_and(|wanted| wanted != own) {
                        continue;
                    }
                    let (nearest, is_final) = self.find_nearest().await;
                    match nearest {
                        Some((look, from)) => {
                            wanted = Some(look.id.clone());
                            let to = look.took;
                            self.go_to(look, &Reason::Nearer { from, to }).await;
                        }
                        None if !is_final => plan.look_for_nearest_later(),
                        None => {}
                    }
                }
            }
        }
    }

    /// Connects to another server if it reaches more than this one. `heard` is what this server had sent at the last check.
    async fn check(&self, plan: &mut Plan, heard: &mut Option<u64>) {
        let reached = count_reached(&self.client).await;
        if reached == streams().len() || self.client.connection_state() != State::Connected {
            return;
        }
        // The end of a connection with TLS is written to it, for which a server that reads nothing lets the client wait: then
        // the client's pings end it.
        let in_bytes = self.client.statistics().in_bytes.load(Ordering::Relaxed);
        let is_alive = heard.replace(in_bytes).is_some_and(|heard| in_bytes > heard);
        if self.client.server_info().tls_required && !is_alive {
            return;
        }
        match self.find_better_than(reached).await {
            Some(other) => self.go_to(other, &Reason::Unreached { reached }).await,
            None => plan.look_later(),
        }
    }

    /// The first other server that reaches the leaders of more streams.
    async fn find_better_than(&self, reached: usize) -> Option<Look> {
        let look = async |address| {
            let look = self.look(address).await?;
            let is_better = look.id != self.id() && count_reached(&look.client).await > reached;
            is_better.then_some(look)
        };
        let mut looks: FuturesUnordered<_> = self.pool().await.into_iter().map(look).collect();
        while let Some(found) = looks.next().await {
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The nearest server, if it is much nearer than this one, with the time that it takes to connect to this one; and whether
    /// that is final, as all servers answer.
    async fn find_nearest(&self) -> (Option<(Look, Duration)>, bool) {
        let own_id = self.id();
        let (mut own, mut nearest) = (None, None::<Look>);
        let mut all_answer = true;
        let pool = self.pool().await;
        if pool.len() < 2 {
            return (None, true);
        }
        for address in pool {
            let mut least: Option<Look> = None;
            for _ in 0..MEASURES {
                let Some(look) = self.look(address.clone()).await else { break };
                if least.as_ref().is_none_or(|least| look.took < least.took) {
                    least = Some(look);
                }
            }
            match least {
                None => all_answer = false,
                Some(look) if look.id == own_id => own = own.into_iter().chain([look.took]).min(),
                Some(look) if nearest.as_ref().is_none_or(|it| look.took < it.took) => {
                    nearest = Some(look);
                }
                Some(_) => {}
            }
        }
        let (Some(own), Some(nearest)) = (own, nearest) else { return (None, all_answer) };
        if nearest.took * 2 >= own || nearest.took + NEARER_BY >= own {
            return (None, all_answer);
        }
        // One that starts does not yet.
        let reaches_all = count_reached(&nearest.client).await == streams().len();
        (reaches_all.then_some((nearest, own)), all_answer && reaches_all)
    }

    /// Connects to a server once more.
    async fn look(&self, address: ServerAddr) -> Option<Look> {
        let options = ConnectOptions::new().name(format!("{}-look", self.name));
        let options = self.access.apply(options.ignore_discovered_servers()).ok()?;
        let began = Instant::now();
        let connecting = timeout(CONNECT_WITHIN, options.connect(address.clone()));
        let client = connecting.await.ok()?.ok()?;
        let took = began.elapsed();
        Some(Look { address, id: client.server_info().server_id, took, client })
    }

    async fn go_to(&self, look: Look, reason: &Reason) {
        let server = look.client.server_info().server_name;
        tracing::info!(server, reason = %reason, "connecting to another server of NATS");
        *lock(&self.servers.next) = Some(look.address);
        // A client that is closed has no task left.
        let _ = self.client.force_reconnect().await;
    }

    /// The addresses of all servers.
    async fn pool(&self) -> Vec<ServerAddr> {
        let pool = self.client.server_pool().await.unwrap_or_default();
        pool.into_iter().map(|server| server.addr).collect()
    }

    async fn is_alone(&self) -> bool {
        self.pool().await.len() < 2
    }

    /// The id of the server that the client is connected to.
    fn id(&self) -> String {
        self.client.server_info().server_id
    }
}
