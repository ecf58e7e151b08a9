//! Leader election: one replica holds the lease, and only with a clock that agrees with the broker's.

use std::time::{Duration, Instant};

use nats::{Broker, lease, lease::Lease, names};
use service::{BackgroundTask, Failures, Part};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Holds the lease, or finds out who does.
pub(crate) const ELECTION: BackgroundTask = BackgroundTask::new("election");
/// How far a leader's clock may be off the broker's, in ms.
const CLOCK_SKEW_MS_MAX: i64 = 1_000;
/// Every so many renewals the clocks are compared.
const CLOCK_CHECK_TURNS: u32 = 25;

/// How long a replica is ready after the broker last confirmed who holds the lease. A broker that is cut off from
/// the others of its cluster confirms nothing.
pub(crate) const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);

/// How long the first attempt to hold the lease may take before a replica follows.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(1);

/// When the lease was last renewed, if it is held.
pub(crate) type LeaseHeld = Option<Instant>;

/// What a replica shares with the task that holds the lease for it.
pub(crate) struct Candidacy {
    /// When the lease was last renewed.
    pub lease: watch::Receiver<LeaseHeld>,
    /// True while this replica knows the events: only then it may hold the lease.
    pub may_lead: watch::Sender<bool>,
}

impl Candidacy {
    /// Lets this replica lead, and waits for the first attempt: a query for the leader that came before must not be
    /// dropped by a replica that leads a moment later.
    pub async fn stand(&mut self) {
        self.lease.mark_unchanged();
        self.may_lead.send_replace(true);
        let _ = tokio::time::timeout(ATTEMPT_WITHIN, self.lease.changed()).await;
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

/// Holds the lease while it can, and publishes in `held` when it was last renewed.
pub(crate) async fn hold_lease(
    broker: Broker,
    name: String,
    held: watch::Sender<LeaseHeld>,
    mut may_lead: watch::Receiver<bool>,
    health: Part,
    stop: CancellationToken,
) {
    let mut lease: Option<Lease> = None;
    let mut failures = Failures::default();
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        if !*may_lead.borrow_and_update() {
            held.send_if_modified(|held| held.take().is_some());
            if let Some(lease) = &mut lease {
                lease.release().await;
            }
            // The replica sets it again after its pause.
            tokio::select! {
                () = stop.cancelled() => {}
                _ = may_lead.changed() => {}
            }
            continue;
        }
        if lease.is_none() {
            let opened = Lease::open(&broker, names::STATE_LEASE, &name).await;
            ELECTION.note(&opened);
            lease = opened.ok();
        }
        if let Some(lease) = &mut lease {
            let asked_at = Instant::now();
            // Before it leads, and every so often then, its clock is held against the broker's.
            let check = held.borrow().is_none() || turn % CLOCK_CHECK_TURNS == 0;
            let holds = if check { hold_by_the_clock(lease).await } else { lease.hold().await };
            ELECTION.note(&holds);
            if holds.is_ok() {
                failures.succeeded();
                health.works();
            }
            match holds {
                Ok(true) => drop(held.send_replace(Some(asked_at))),
                Ok(false) => drop(held.send_replace(None)),
                // No other service can take it while the broker is away; the fences hold in any
                // case.
                Err(error) if failures.is_news(&error.to_string()) => {
                    tracing::warn!(%error, "lease not renewed");
                }
                Err(_) => {}
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
