//! Which server of a cluster a client is connected to: one that reaches the leaders of the streams, and the nearest of
//! them.
//!
//! async-nats connects to any server of its list, and to another one only after it has lost the connection. A server that is
//! cut off from another one keeps its connections, but does not reach the streams that the other one leads.

mod leaders;
mod plan;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, ReconnectToServer, ServerAddr, connection::State};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use leaders::{Reached, reaches};
use plan::{BACKOFF, Plan, RETURN_AFTER, RETURN_AFTER_MAX, SETTLED_AFTER, jitter};

/// How long writes may fail before other servers are asked.
pub(crate) const FAILING_FOR: Duration = Duration::from_secs(1);
/// How long a server has to accept a connection, if there are others.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long the client's task has to list its servers.
const POOL_WITHIN: Duration = Duration::from_secs(1);
/// How long may pass until what waits in the client is sent.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// How often one of the streams is asked for, whether writes fail or not.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How recently a server must have sent something to be left over TLS.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// How often each server is connected to; the shortest time counts.
const MEASURES: usize = 3;
/// A server is nearer if connecting takes less than half the time, and this much less: servers of one site are equally near.
const NEARER_BY: Duration = Duration::from_millis(3);

/// What a client knows about its servers.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    /// The server to connect to next, if one was chosen.
    next: Mutex<Option<ServerAddr>>,
    /// When writes began to fail, in a row.
    failing_since: Mutex<Option<Instant>>,
    /// Whether the connection is replaced because this client chose another server.
    is_leaving: AtomicBool,
    /// The server that was chosen last, and the one at which the choices began.
    chosen: Mutex<Option<Chosen>>,
    /// Notified when writes have failed for a while.
    fails: Notify,
    /// Notified when the server of the connection is in lame duck mode.
    stops: Notify,
}

/// Ids of servers.
#[derive(Debug)]
struct Chosen {
    server: String,
    first: String,
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

    /// Forgets what was noted of a connection that was replaced.
    fn forget(&self) {
        self.note_answer();
        let _ = self.fails.notified().now_or_never();
        let _ = self.stops.notified().now_or_never();
    }

    /// Notes that the server of the connection is in lame duck mode.
    pub(crate) fn note_lame_duck(&self) {
        self.stops.notify_one();
    }

    /// Whether the connection was replaced by choice; once.
    pub(crate) fn take_leaving(&self) -> bool {
        self.is_leaving.swap(false, Ordering::SeqCst)
    }

    /// The server at which the choices that led to `server` began: `server` itself if it was not chosen.
    pub(crate) fn first_of(&self, server: String) -> String {
        match &*lock(&self.chosen) {
            Some(chosen) if chosen.server == server => chosen.first.clone(),
            _ => server,
        }
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
    /// The streams whose leaders it needs.
    pub streams: Vec<String>,
    /// Counts the connections.
    pub connects: watch::Receiver<u64>,
}

/// A second connection to a server, to compare it.
struct Probe {
    address: ServerAddr,
    /// The server's own id: it can have several addresses.
    id: String,
    took: Duration,
    client: Client,
}

/// Why a client leaves its server.
enum Reason {
    Unreached { reached: usize, of: usize },
    LameDuck,
    Nearer { from: Duration, to: Duration },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreached { reached, of } => {
                write!(f, "the old one reaches the leaders of {reached} of {of} streams")
            }
            Self::LameDuck => f.write_str("the old one is in lame duck mode"),
            Self::Nearer { from, to } => {
                let (from, to) = (from.as_millis(), to.as_millis());
                write!(f, "the new one is nearer: connecting takes {to} ms instead of {from} ms")
            }
        }
    }
}

impl Watch {
    /// Watches the connection until `stop` is done.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(mut self) {
        let streams = self.streams.clone();
        let mut turns = streams.iter().cycle();
        let mut plan = Plan::new(Some(SETTLED_AFTER + jitter()));
        let mut in_bytes = None;
        let mut last_reason = None;
        loop {
            tokio::select! {
                changed = self.connects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.servers.forget();
                    in_bytes = None;
                    let backoff = plan.backoff;
                    plan = Plan::new(match &last_reason {
                        None => Some(SETTLED_AFTER + jitter()),
                        // The nearest server may be the one that was left.
                        Some(Reason::Unreached { .. } | Reason::LameDuck) => Some(RETURN_AFTER + jitter()),
                        // It may have refused the connection.
                        Some(Reason::Nearer { .. }) => Some(RETURN_AFTER_MAX),
                    });
                    // Behind an address that leads to several servers it may be the same one.
                    if matches!(last_reason.take(), Some(Reason::Unreached { .. })) {
                        plan.backoff = backoff;
                        plan.compare_later();
                    }
                }
                () = self.servers.stops.notified() => {
                    let old = *self.connects.borrow();
                    sleep(jitter()).await;
                    let nothing = Reached::nothing(streams.len());
                    match self.find_better_than(&nothing).await {
                        Some(other) => last_reason = self.go_to(old, other, Reason::LameDuck).await,
                        // The leaders are moving.
                        None => self.servers.note_lame_duck(),
                    }
                }
                () = self.servers.fails.notified() => {
                    if Instant::now() >= plan.not_before {
                        last_reason = self.compare(&mut plan, &mut in_bytes).await;
                    }
                }
                () = sleep(ASK_EVERY + jitter()) => {
                    let stream = turns.next().expect("there are streams");
                    let is_due = Instant::now() >= plan.not_before && self.pool().await.len() > 1;
                    if is_due && !reaches(&self.client, stream).await {
                        last_reason = self.compare(&mut plan, &mut in_bytes).await;
                    }
                }
                () = plan.nearest() => {
                    plan.nearest_after = None;
                    let old = *self.connects.borrow();
                    match self.find_nearest().await {
                        (Some((nearest, from)), _) => {
                            let reason = Reason::Nearer { from, to: nearest.took };
                            last_reason = self.go_to(old, nearest, reason).await;
                        }
                        (None, false) => plan.search_later(),
                        (None, true) => {}
                    }
                }
            }
        }
    }

    /// Connects to another server if it reaches more than this one, twice in a row. `in_bytes` is how much this server had sent at
    /// the last comparison, and when that was.
    async fn compare(
        &self,
        plan: &mut Plan,
        in_bytes: &mut Option<(u64, Instant)>,
    ) -> Option<Reason> {
        let old = *self.connects.borrow();
        plan.compare_later();
        if self.pool().await.len() < 2 {
            return None;
        }
        let reached = Reached::by(&self.client, &self.streams).await;
        if reached.is_all() {
            plan.backoff = BACKOFF;
            return None;
        }
        // async-nats ends a connection with TLS by a last record, and waits until the server has read it: a server that
        // does not read is left to the client's pings.
        let now = self.client.statistics().in_bytes.load(Ordering::Relaxed);
        let before = in_bytes.replace((now, Instant::now()));
        let is_alive = before.is_some_and(|(bytes, at)| at.elapsed() < ALIVE_WITHIN && now > bytes);
        if self.uses_tls() && !is_alive {
            plan.not_before = Instant::now() + BACKOFF;
            return None;
        }
        let other = self.find_better_than(&reached).await?;
        // A leader may have been elected meanwhile, or one answer have been slow.
        let (own, others) = tokio::join!(
            Reached::by(&self.client, &self.streams),
            Reached::by(&other.client, &self.streams)
        );
        if !others.is_better_than(&own) {
            return None;
        }
        let reason = Reason::Unreached { reached: own.count(), of: self.streams.len() };
        self.go_to(old, other, reason).await
    }

    /// The first other server that reaches more.
    async fn find_better_than(&self, reached: &Reached) -> Option<Probe> {
        let probe = async |address| {
            // Otherwise all clients of a server would go to the same one.
            sleep(jitter() / 4).await;
            let probe = self.probe(address).await?;
            let others = Reached::by(&probe.client, &self.streams).await;
            (probe.id != self.id() && others.is_better_than(reached)).then_some(probe)
        };
        let mut probes: FuturesUnordered<_> = self.pool().await.into_iter().map(probe).collect();
        while let Some(found) = probes.next().await {
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The nearest server, if it is much nearer than this one, with the time that it takes to connect to this one; and whether
    /// that is final, as all servers answer.
    async fn find_nearest(&self) -> (Option<(Probe, Duration)>, bool) {
        let own_id = self.id();
        let (mut own, mut nearest) = (None, None::<Probe>);
        let mut all_answer = true;
        let pool = self.pool().await;
        if pool.len() < 2 {
            return (None, true);
        }
        for address in pool {
            let mut least: Option<Probe> = None;
            for _ in 0..MEASURES {
                let Some(probe) = self.probe(address.clone()).await else { break };
                if least.as_ref().is_none_or(|least| probe.took < least.took) {
                    least = Some(probe);
                }
            }
            match least {
                None => all_answer = false,
                Some(probe) if probe.id == own_id => {
                    own = own.into_iter().chain([probe.took]).min();
                }
                Some(probe) if nearest.as_ref().is_none_or(|it| probe.took < it.took) => {
                    nearest = Some(probe);
                }
                Some(_) => {}
            }
        }
        let (Some(own), Some(nearest)) = (own, nearest) else { return (None, all_answer) };
        if nearest.took * 2 >= own || nearest.took + NEARER_BY >= own {
            return (None, all_answer);
        }
        // A server that has just started reaches nothing yet.
        let is_ready = Reached::by(&nearest.client, &self.streams).await.is_all();
        (is_ready.then_some((nearest, own)), all_answer && is_ready)
    }

    /// Connects to a server once more.
    async fn probe(&self, address: ServerAddr) -> Option<Probe> {
        let options = ConnectOptions::new().name(format!("{}-probe", self.name));
        let options = options.ignore_discovered_servers().max_reconnects(1);
        let options = self.access.apply(options).ok()?;
        let began = Instant::now();
        let connecting = timeout(CONNECT_WITHIN, options.connect(address.clone()));
        let client = connecting.await.ok()?.ok()?;
        let took = began.elapsed();
        Some(Probe { address, id: client.server_info().server_id, took, client })
    }

    /// Replaces connection number `old` by one to another server, and returns the reason; does nothing if the client has replaced
    /// or lost it meanwhile.
    async fn go_to(&self, old: u64, probe: Probe, reason: Reason) -> Option<Reason> {
        let is_connected = self.client.connection_state() == State::Connected;
        if !is_connected || *self.connects.borrow() != old {
            return None;
        }
        let server = probe.client.server_info().server_name;
        tracing::info!(server, reason = %reason, "connecting to another server of NATS");
        if !matches!(reason, Reason::Unreached { .. }) {
            let _ = timeout(FLUSH_WITHIN, self.client.flush()).await;
        }
        let first = self.servers.first_of(self.id());
        *lock(&self.servers.chosen) = Some(Chosen { server: probe.id, first });
        *lock(&self.servers.next) = Some(probe.address);
        self.servers.is_leaving.store(true, Ordering::SeqCst);
        // A client that is closed has no task left.
        let _ = self.client.force_reconnect().await;
        Some(reason)
    }

    /// The addresses of all servers; none while the client has no connection.
    async fn pool(&self) -> Vec<ServerAddr> {
        let pool = timeout(POOL_WITHIN, self.client.server_pool()).await;
        let pool = pool.ok().and_then(Result::ok).unwrap_or_default();
        pool.into_iter().map(|server| server.addr).collect()
    }

    fn uses_tls(&self) -> bool {
        let is_required = self.client.server_info().tls_required;
        is_required || self.access.servers().iter().any(ServerAddr::tls_required)
    }

    /// The id of the server that the client is connected to.
    fn id(&self) -> String {
        self.client.server_info().server_id
    }
}
