//! Leader election. The holder of the lease leads until its append is refused or it loses the
//! lease. The other replicas follow EVENTS and answer queries.

use std::time::{Duration, Instant};

use mesh::{Broker, lease, lease::Lease, names};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Config, clock::Clock, follower, leader::Leader, queries::QueryServer, takeover};

/// How long a state service that failed waits before it starts over.
const START_OVER_PAUSE: Duration = Duration::from_millis(200);

/// How far a leader's clock may be off the broker's, in ms.
const CLOCK_SKEW_MS_MAX: i64 = 1_000;
/// Every so many renewals the clocks are compared.
const CLOCK_CHECK_TURNS: u32 = 25;

/// When the lease was last renewed, if it is held.
pub(crate) type LeaseHeld = Option<Instant>;

/// Runs a state service until `stop` is cancelled.
///
/// # Errors
/// If the NATS account cannot be used; temporary errors are retried.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let name = service::instance("state");
    let Some(broker) = config.nats.connect(&name, &stop).await? else { return Ok(()) };
    let clock = Clock::start();
    let mut queries = QueryServer::open(&broker).await?;
    let (held, mut lease) = watch::channel(None);
    let keeper = tokio::spawn(keep_lease(broker.clone(), name.clone(), held, stop.clone()));
    while !stop.is_cancelled() {
        if let Err(error) =
            serve(&config, &broker, &name, &mut queries, &mut lease, &clock, &stop).await
        {
            tracing::warn!(error = format!("{error:#}"), "starting over");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(START_OVER_PAUSE) => {}
            }
        }
    }
    drop(lease);
    keeper.await?;
    queries.close().await;
    broker.client.flush().await.ok();
    Ok(())
}

/// Follows until the lease is held, then leads until it is lost.
async fn serve(
    config: &Config,
    broker: &Broker,
    name: &str,
    queries: &mut QueryServer,
    lease: &mut watch::Receiver<LeaseHeld>,
    clock: &Clock,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let Some(state) = follower::stand_by(config, broker, queries, lease, clock, stop).await? else {
        return Ok(());
    };
    let started = takeover::start(config, broker, state, name, clock).await?;
    let leader =
        Leader::new(config.clone(), broker.clone(), queries, lease.clone(), clock.clone(), started);
    tokio::select! {
        ended = leader.run(stop.clone()) => ended,
        _ = lease.wait_for(Option::is_none) => anyhow::bail!("the lease was lost"),
    }
}

/// Holds the lease, but not with a clock that is off: retry delays, permits and schedules would
/// be off with it, and time never goes back for those who lead after.
async fn hold_by_the_clock(lease: &mut Lease) -> Result<bool, lease::Error> {
    let mut skew_ms = 0;
    // Twice: an answer that was lost makes an earlier write look like this one.
    for _ in 0..2 {
        let Some(skew) = lease.clock_skew_ms(service::now_ms).await? else { return Ok(false) };
        if skew.abs() <= CLOCK_SKEW_MS_MAX {
            return Ok(true);
        }
        skew_ms = skew;
    }
    tracing::error!(skew_ms, "this machine's clock is off the broker's: not leading");
    lease.release().await;
    Ok(false)
}

/// Holds the lease while it can, and says when it last made sure of that.
async fn keep_lease(
    broker: Broker,
    name: String,
    held: watch::Sender<LeaseHeld>,
    stop: CancellationToken,
) {
    let mut lease = None;
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        if lease.is_none() {
            lease = Lease::open(&broker, names::STATE_LEASE, &name).await.ok();
        }
        if let Some(lease) = &mut lease {
            let asked_at = Instant::now();
            // Before it leads, and every so often then, its clock is held against the broker's.
            let check = held.borrow().is_none() || turn % CLOCK_CHECK_TURNS == 0;
            let holds = if check { hold_by_the_clock(lease).await } else { lease.hold().await };
            match holds {
                Ok(true) => drop(held.send_replace(Some(asked_at))),
                Ok(false) => drop(held.send_replace(None)),
                // No other service can take it while the broker is away; the fences hold in any
                // case.
                Err(error) => tracing::warn!(error = %error, "lease not renewed"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(lease::RENEW_EVERY) => {}
        }
    }
    // The leader stops first: commands that it processes after its last append are left to the next
    // leader.
    held.closed().await;
    if let Some(lease) = &mut lease {
        lease.release().await;
    }
}
