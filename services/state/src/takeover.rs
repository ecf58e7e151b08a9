//! From what is known to leading: snapshot, the events after it, the claim, the fences.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use job::{ByClass, PriorityClass, Scheduler, State, event::Batch, transaction::Transaction};
use nats::{
    Broker,
    append::{self, Appended},
    bucket::Fence,
    names,
    publish::{self, Writes},
    rejected::Rejected,
    run_tokens::RunTokens,
    snapshot::SnapshotWatermark,
    stream_reader::{self, StreamReader},
    wire::{self, Malformed},
    work_queue::WorkFence,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Config, clock::Clock};

/// How long the next message of a replay may take.
const REPLAY_STALL: Duration = Duration::from_secs(10);

/// Messages that are read before they are applied.
const READ_AHEAD_MESSAGES: usize = 4;

/// A state that leads.
pub(crate) struct Started {
    /// What is known, up to the own claim.
    pub state: State,
    /// The right to write the bucket.
    pub bucket: Fence,
    /// The rights to dispatch, by class.
    pub fences: ByClass<WorkFence>,
    /// The snapshots that are kept, oldest first.
    pub snapshots: Vec<SnapshotWatermark>,
    /// The size of COMMANDS, in bytes.
    pub commands_bytes: u64,
    /// What makes and checks the tokens of runs.
    pub run_tokens: RunTokens,
}

/// The state of the last snapshot.
pub(crate) async fn load(config: &Config, broker: &Broker) -> anyhow::Result<State> {
    let empty = config.clone();
    let read = move |from: &mut dyn std::io::BufRead| empty.empty_state().restore(from);
    Ok(broker.get_snapshot(read).await?.unwrap_or_else(|| config.empty_state()))
}

/// Catches up and claims to lead.
pub(crate) async fn start(
    config: &Config,
    broker: &Broker,
    mut state: State,
    name: &str,
    clock: &Clock,
) -> anyhow::Result<Started> {
    let started = std::time::Instant::now();
    let from = state.position().sequence;
    let last = replay(broker, &mut state).await?;
    let term = state.term() + 1;
    let snapshots = broker.snapshot_reaches().await?;
    let room = broker.room(names::COMMANDS).await;
    // The stream can be without a limit, or does not answer now.
    let commands_bytes = room.map_or_else(|| config.nats.sizes().commands(), |(_, max)| max);
    let last = match claim(broker, &mut state, last, name, clock).await {
        Err(error) if is_full(&error) => {
            make_room(config, broker).await.context("EVENTS is full and stays so")?;
            bail!("EVENTS was full: what a snapshot covers is cut");
        }
        claimed => claimed?,
    };
    let run_tokens = broker.take_run_tokens(term, clock.now(state.at())).await?;
    let bucket = fence_bucket(broker, term).await?;
    state.settle(bucket.through.position);
    let fences = take_fences(config, broker, term).await?;
    tracing::info!(
        term,
        events.known = from,
        events.last = last,
        commands.through = state.through(),
        jobs = state.counts(None).total(),
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "leading"
    );
    Ok(Started { state, bucket, fences, snapshots, commands_bytes, run_tokens })
}

/// Applies the events after the snapshot, for the caller to settle; returns the last message of
/// EVENTS.
pub(crate) async fn replay(broker: &Broker, state: &mut State) -> anyhow::Result<u64> {
    let last = broker.last_sequence(names::EVENTS).await?;
    let next = state.position().sequence + 1;
    ensure!(
        last + 1 >= next,
        "the snapshot reaches up to event {}, EVENTS only to {last}: the stream was replaced",
        next - 1
    );
    if last < next {
        return Ok(last);
    }
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut messages = read_ahead(StreamReader::start(broker.clone(), names::EVENTS, next, stop));
    state.begin_replay();
    loop {
        let message = tokio::time::timeout(REPLAY_STALL, messages.recv()).await;
        let message = message.context("the replay of EVENTS stalled")?;
        let Read { sequence, events } = message.context("the replay of EVENTS ended early")??;
        let next = state.position().sequence + 1;
        ensure!(
            sequence == next,
            "EVENTS {next} to {} were deleted and no snapshot covers them",
            sequence - 1
        );
        match events {
            Ok((through, batch)) => state.apply_batch(sequence, through, &batch),
            Err(rejected) => {
                broker.set_aside(&[rejected]).await;
                state.skip_message(sequence);
            }
        }
        if sequence >= last {
            return Ok(sequence);
        }
    }
}

/// A message of EVENTS, read.
struct Read {
    sequence: u64,
    events: Result<(u64, Batch), Rejected>,
}

fn read_message(message: &stream_reader::Message) -> anyhow::Result<Read> {
    let sequence = message.sequence;
    match wire::events(sequence, message.headers.as_ref(), &message.payload) {
        Err(error @ Malformed::Newer { .. }) => Err(error.into()),
        events => {
            let events = events.map_err(|error| Rejected::event(message, &error));
            Ok(Read { sequence, events })
        }
    }
}

/// Reads messages on another thread than the one that applies them: a start is as long as the
/// longer of both.
fn read_ahead(mut messages: StreamReader) -> mpsc::Receiver<anyhow::Result<Read>> {
    let (read, reader) = mpsc::channel(READ_AHEAD_MESSAGES);
    tokio::spawn(async move {
        loop {
            let message = match messages.recv().await {
                Ok(message) => read_message(&message),
                Err(error) => Err(error.into()),
            };
            let ended = message.is_err();
            if read.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    reader
}

/// Appends the claim to lead: the previous leader fails at its next append.
async fn claim(
    broker: &Broker,
    state: &mut State,
    last: u64,
    name: &str,
    clock: &Clock,
) -> anyhow::Result<u64> {
    let now = clock.now(state.at());
    let (scheduler, rules) = (Scheduler::default(), job::Config::default());
    let mut transaction = Transaction::begin(state, &scheduler, &rules, now);
    transaction.claim(name.into());
    let mut commit = transaction.commit();
    let message = commit.messages.pop().context("a claim is one message")?;
    match broker
        .append_for(message.required_version, last, message.through, message.payload.into())
        .await?
    {
        Appended::At(sequence) => {
            commit.stored(state, sequence);
            Ok(sequence)
        }
        Appended::Stale => bail!("another state service claimed to lead at the same time"),
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<append::Error>();
    matches!(refused, Some(append::Error::Publish(error)) if error.is(publish::LIMITS))
}

/// Makes room in EVENTS, which is so full that no replica can start to lead: only a leader trims
/// it. Any replica may write this snapshot: it contains only what EVENTS contains.
async fn make_room(config: &Config, broker: &Broker) -> anyhow::Result<()> {
    // Loaded again: the caller's state includes its own claim, which is in no stream.
    let mut state = load(config, broker).await?;
    let last = replay(broker, &mut state).await?;
    let reach = SnapshotWatermark { events: last, commands: state.through() };
    let frozen = state.snapshot();
    broker.put_snapshot(reach, move |to| frozen.write(to)).await?;
    let events = broker.js.get_stream(names::EVENTS).await?;
    let first = events.cached_info().state.first_sequence;
    let kept = broker.snapshot_reaches().await?;
    let older = kept.first().map_or(last, |reach| reach.events);
    // The older one covers nothing that is still there: then the newer one has to do.
    let below = if older >= first { older } else { last } + 1;
    tracing::error!(from = first, to = below - 1, "EVENTS is full: it is cut before it is led");
    events.purge().sequence(below).await?;
    Ok(())
}

/// Takes the fences of the work streams.
async fn take_fences(
    config: &Config,
    broker: &Broker,
    term: u64,
) -> anyhow::Result<ByClass<WorkFence>> {
    let mut fences = Vec::with_capacity(PriorityClass::ALL.len());
    for class in PriorityClass::ALL {
        let fence = broker.take_fence(class, term).await?;
        let is_in_cluster = broker.is_in_cluster();
        let is_alone = config.nats.sizes().replicas_in(is_in_cluster) == 1 && !is_in_cluster;
        if is_alone && !fence.acks_before_sync {
            tracing::warn!(
                stream = names::work_stream(class),
                "ready work waits for the disk: the stream was made by an earlier version, see \
                 \"Work streams\" in docs/operations.md"
            );
        }
        fences.push(fence);
    }
    Ok(ByClass::from_fn(|class| fences[class as usize]))
}

/// Moves the fence of the bucket, without saying that it shows more than it does.
async fn fence_bucket(broker: &Broker, term: u64) -> anyhow::Result<Fence> {
    let old = broker.read_fence().await?;
    let through = wire::ProjectionWatermark { position: old.through.position, term };
    broker
        .write_bucket(old, through, Vec::new(), Writes::Atomic)
        .await
        .context("the bucket could not be fenced")
}
