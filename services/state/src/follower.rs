//! A state service that does not lead: it follows EVENTS, answers questions, and is ready to
//! lead from one message to the next.

use std::time::Duration;

use anyhow::{Context, ensure};
use job::State;
use nats::{
    Broker, names,
    rejected::Rejected,
    stream_reader::{self, StreamReader},
    wire,
};
use service::Part;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    clock::Clock,
    election::Candidacy,
    query::{Incoming, QueryContext, QueryServer},
    takeover,
};

/// How often a follower checks how far the bucket is, to evict terminal jobs.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// How often questions that came too early are looked at without a new event.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Follows until the lease is held; returns the current state, or `None` if `stop` is cancelled.
///
/// # Errors
/// If the events have a gap: the caller starts over from the snapshot.
pub(crate) async fn run(
    config: &Config,
    broker: &Broker,
    queries: &mut QueryServer,
    candidacy: &mut Candidacy,
    clock: &Clock,
    health: &Part,
    stop: &CancellationToken,
) -> anyhow::Result<Option<State>> {
    let rules = config.rules();
    let mut state = takeover::load(config, broker).await?;
    takeover::replay(broker, &mut state).await?;
    // The bucket holds the jobs of the snapshot that became terminal since.
    state.settle(broker.read_fence().await?.through.position);
    health.works();
    candidacy.stand().await;
    let lease = candidacy.lease.clone();
    let following = CancellationToken::new();
    let _following = following.clone().drop_guard();
    let next = state.position().sequence + 1;
    let mut events = StreamReader::start(broker.clone(), names::EVENTS, next, following);
    let mut forget = tokio::time::interval(FORGET_EVERY);
    forget.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut context = QueryContext { state: &mut state, rules: &rules, clock, leads: false };
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            held = candidacy.lease.wait_for(|held| held.is_some()) => {
                held.context("the lease task has stopped")?;
                return Ok(Some(state));
            }
            message = events.recv() => {
                apply(broker, &mut state, &message?).await?;
                let mut context = QueryContext { state: &mut state, rules: &rules, clock, leads: false };
                queries.look_again(&mut context).await;
            }
            incoming = queries.next() => match incoming {
                // The leader answers it: some queries only a leader can.
                Incoming::Question(question) if lease.borrow().is_some() => {
                    queries.keep(question);
                    return Ok(Some(state));
                }
                Incoming::Question(question) => queries.take(question, &mut context).await,
                Incoming::Heartbeat(payload) => queries.note_heartbeat(&payload),
            },
            _ = look.tick() => queries.look_again(&mut context).await,
            _ = forget.tick() => {
                // A bucket that cannot be read now is read the next time.
                if let Ok(fence) = broker.read_fence().await {
                    state.forget(fence.through.position);
                }
            }
        }
    }
}

async fn apply(
    broker: &Broker,
    state: &mut State,
    message: &stream_reader::Message,
) -> anyhow::Result<()> {
    let sequence = message.sequence;
    let next = state.position().sequence + 1;
    ensure!(sequence == next, "EVENTS {next} to {} were not applied", sequence - 1);
    match wire::events(sequence, message.headers.as_ref(), &message.payload) {
        Ok((through, batch)) => state.apply_batch(sequence, through, &batch),
        Err(error @ wire::Malformed::Newer { .. }) => return Err(error.into()),
        Err(error) => {
            broker.set_aside(&[Rejected::event(message, &error)]).await;
            state.skip_message(sequence);
        }
    }
    Ok(())
}
