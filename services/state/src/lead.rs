//! Who leads: the holder of the lease, until its append is refused or the lease is gone.

use std::time::Duration;

use mesh::{Broker, lease, lease::Lease, names};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Config, leader::Leader, start};

/// How long a leader that failed waits before it starts over.
const START_OVER_PAUSE: Duration = Duration::from_millis(200);

/// Runs a state service until `stop` is cancelled.
///
/// # Errors
/// Where the NATS account cannot be used; everything that may pass is waited out.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let name = service::instance("state");
    let Some(broker) = config.nats.connect(&name, &stop).await? else { return Ok(()) };
    let (held, lease) = watch::channel(false);
    let keeper = tokio::spawn(keep_lease(broker.clone(), name.clone(), held, stop.clone()));
    lead_when_held(&config, &broker, &name, lease, &stop).await;
    keeper.await?;
    broker.client.flush().await.ok();
    Ok(())
}

/// Leads whenever the lease is held, and starts over after a failure.
async fn lead_when_held(
    config: &Config,
    broker: &Broker,
    name: &str,
    mut lease: watch::Receiver<bool>,
    stop: &CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            held = lease.wait_for(|held| *held) => if held.is_err() { return },
        }
        match lead(config, broker, name, &mut lease, stop).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "not leading, starting over")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(START_OVER_PAUSE) => {}
        }
    }
}

async fn lead(
    config: &Config,
    broker: &Broker,
    name: &str,
    lease: &mut watch::Receiver<bool>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let started = start::start(config, broker, name).await?;
    let leader = Leader::new(config.clone(), broker.clone(), started);
    tokio::select! {
        ended = leader.run(stop.clone()) => ended,
        _ = lease.wait_for(|held| !held) => anyhow::bail!("the lease is gone"),
    }
}

/// Holds the lease while it can, and says whether it does.
async fn keep_lease(
    broker: Broker,
    name: String,
    held: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut lease = None;
    while !stop.is_cancelled() {
        if lease.is_none() {
            lease = Lease::open(&broker, names::STATE_LEASE, &name).await.ok();
        }
        if let Some(lease) = &mut lease {
            match lease.hold().await {
                Ok(now) => {
                    held.send_if_modified(|was| std::mem::replace(was, now) != now);
                }
                // Nobody can take it either while the broker is away; the fences hold anyway.
                Err(error) => tracing::warn!(error = %error, "lease not renewed"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(lease::RENEW_EVERY) => {}
        }
    }
    // The leader ends first: what it still folds after its last append is nobody's yet.
    held.closed().await;
    if let Some(lease) = &mut lease {
        lease.release().await;
    }
}
