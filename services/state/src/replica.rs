//! One replica of the state service: it follows until it holds the lease, and leads until it loses
//! it.

use std::time::Duration;

use job::State;
use nats::Broker;
use service::{Failures, Health, Identity, Part, tasks};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    clock::Clock,
    election::{self, Candidacy},
    follower,
    leader::{Leader, StepDown},
    measurements,
    query::QueryServer,
    takeover,
};

/// How long a replica that failed waits before it starts over.
const START_OVER_PAUSE: Duration = Duration::from_millis(200);

/// How long a replica waits before it reads again what only a newer program could read.
const NEWER_PAUSE: Duration = Duration::from_secs(15);

/// What a replica does.
enum Role {
    /// It loads the state, follows EVENTS, and answers questions.
    Follower,
    /// It holds the lease. The state is what it knew as a follower.
    Leader(Box<State>),
}

/// What both roles use.
struct Replica {
    config: Config,
    name: String,
    broker: Broker,
    queries: QueryServer,
    candidacy: Candidacy,
    clock: Clock,
    /// Ready while this replica knows the events.
    events: Part,
}

/// Runs a state service until `stop` is cancelled.
///
/// # Errors
/// If the NATS account cannot be used; temporary errors are retried.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let name = service::instance(Identity::State);
    let health = Health::default();
    let has_lease = health.part("lease", Some(election::CONFIRMED_WITHIN));
    let events = health.part("events", None);
    let describe = measurements::describe;
    config.measurements.serve(&health, Identity::State, describe, stop.clone()).await?;
    let broker = config.nats.connect(Identity::State, &name, &stop).await?;
    let Some(broker) = broker else { return Ok(()) };
    health.connected(&broker);
    tasks::list(&[election::ELECTION]);
    tasks::report_tasks(&broker, Identity::State, &name).await?;
    let queries = QueryServer::open(&broker, &name).await?;
    let (held, lease) = watch::channel(None);
    let (may_lead, can_lead) = watch::channel(false);
    let election =
        election::hold_lease(broker.clone(), name.clone(), held, can_lead, has_lease, stop.clone());
    let election = tokio::spawn(election);
    let candidacy = Candidacy { lease, may_lead };
    let clock = Clock::start();
    let mut replica = Replica { config, name, broker, queries, candidacy, clock, events };
    let mut role = Role::Follower;
    let mut failures = Failures::default();
    while !stop.is_cancelled() {
        role = match replica.act(role, &stop).await {
            Ok(next) => next,
            Err(error) if error.is_for_newer() => {
                let error = error.to_string();
                if failures.is_news(&error) {
                    tracing::error!(
                        error,
                        "paused, so that a newer state service can lead, see \"Upgrades\" in docs/operations.md"
                    );
                }
                replica.events.fails(format!("paused: {error}"));
                replica.pause(&stop).await;
                Role::Follower
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "starting over");
                replica.events.fails(format!("starting over: {error:#}"));
                replica.start_over(&stop).await;
                Role::Follower
            }
        };
    }
    let Replica { broker, queries, candidacy, .. } = replica;
    drop(candidacy);
    election.await?;
    queries.close().await;
    broker.flush().await;
    Ok(())
}

impl Replica {
    /// Lets others lead for a moment. Queries wait: this may be the only replica.
    async fn start_over(&mut self, stop: &CancellationToken) {
        self.candidacy.may_lead.send_replace(false);
        tokio::select! { () = stop.cancelled() => {} () = tokio::time::sleep(START_OVER_PAUSE) => {} }
    }

    /// Lets others lead and answer for a while.
    async fn pause(&mut self, stop: &CancellationToken) {
        self.candidacy.may_lead.send_replace(false);
        let over = tokio::time::sleep(NEWER_PAUSE);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut over => return,
                incoming = self.queries.next() => self.queries.refuse(incoming).await,
            }
        }
    }

    /// Acts in a role until it ends; returns the next one.
    async fn act(&mut self, role: Role, stop: &CancellationToken) -> Result<Role, StepDown> {
        let Self { config, name, broker, queries, candidacy, clock, events } = self;
        let state = match role {
            Role::Follower => {
                let followed =
                    follower::run(config, broker, queries, candidacy, clock, events, stop).await?;
                return Ok(followed.map_or(Role::Follower, |state| Role::Leader(Box::new(state))));
            }
            Role::Leader(state) => state,
        };
        let started = takeover::start(config, broker, *state, name, clock).await?;
        let (connection, lease_held) = (broker.clone(), candidacy.lease.clone());
        let leader = Leader::new(config, connection, queries, lease_held, clock.clone(), started);
        let ended = tokio::select! {
            ended = leader.run(stop.clone()) => ended,
            _ = candidacy.lease.wait_for(Option::is_none) => Err(StepDown::LeaseLost),
        };
        measurements::stopped_leading(ended.is_err());
        tasks::remove(&crate::leader::TASKS);
        ended.map(|()| Role::Follower)
    }
}
