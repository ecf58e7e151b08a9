//! Reads ended runs from EVENTS and inserts them into ClickHouse in blocks, each exactly once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ::traces::Tracer;
use anyhow::{bail, ensure};
use job::time::Millis;
use nats::{
    Broker,
    lease::Lease,
    names,
    stream_reader::{self, StreamReader},
    wire,
};
use service::{BackgroundTask, Part, tasks};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    checkpoint::{Checkpoint, CheckpointStore},
    measurements,
    rows::{RunRow, rows},
    traces,
};

/// Reads EVENTS.
const INGESTION: BackgroundTask = BackgroundTask::new("ingestion");
/// Inserts the rows of ended runs.
const ROWS: BackgroundTask = BackgroundTask::new("rows");
/// What only the metrics service with the lease does.
const TASKS: [BackgroundTask; 4] = [INGESTION, ROWS, audit::INGESTION, audit::RECORDS];
/// Rows of a block after which it is closed. A block must stay one insert block of ClickHouse.
const BLOCK_ROWS_MAX: usize = 50_000;
/// Messages of EVENTS in a block.
const BLOCK_MESSAGES_MAX: usize = 5_000;
/// How long rows wait for company.
const BLOCK_WAIT: Duration = Duration::from_millis(250);
/// Rows after that time which make a block wait longer.
const BLOCK_ROWS_BUSY: usize = 20;
/// How long such a block waits in all.
const BLOCK_WAIT_BUSY: Duration = Duration::from_millis(1_000);
/// How long sending a block, and waiting for its answer, may take.
const INSERT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before a block is sent again.
const INSERT_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait before the pump starts over.
const START_OVER_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait for a newer metrics service if only that can read EVENTS.
const NEWER_PAUSE: Duration = Duration::from_secs(15);
/// The lease that lets one metrics service pump.
const LEASE: &str = "metrics-pump";

/// How far the pump is: what it read, and what of it ClickHouse has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<watch::Sender<IngestWatermark>>);

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IngestWatermark {
    /// The last message of EVENTS in ClickHouse.
    pub sequence: u64,
    /// When it was written.
    pub at: Millis,
}

impl Progress {
    pub fn reached(&self) -> IngestWatermark {
        *self.0.borrow()
    }

    /// Tells of each change from now on.
    pub fn changes(&self) -> watch::Receiver<IngestWatermark> {
        self.0.subscribe()
    }

    fn reach(&self, reached: IngestWatermark) {
        self.0.send_replace(reached);
    }
}

/// Pumps until `stop` is cancelled, starting over after whatever failure.
pub(crate) async fn run(
    broker: &Broker,
    client: &clickhouse::Client,
    name: &str,
    progress: &Progress,
    tracer: Option<&Tracer>,
    health: &Part,
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let ingest = async {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = ingest_while_held(broker, client, name, progress, tracer, health) => ended,
            }
        };
        let ended = ingest.await;
        if let Err(error) = &ended {
            INGESTION.failed(error);
        }
        measurements::ingesting(false);
        let mut pause = START_OVER_PAUSE;
        match ended {
            Err(error) if is_newer(&error) => {
                tracing::error!(%error, "paused, so that a newer metrics service can continue");
                health.fails(format!("paused: {error}"));
                pause = NEWER_PAUSE;
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "not taking in events, starting over");
            }
            Ok(()) => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether only a newer program can continue.
fn is_newer(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(wire::Malformed::Newer { .. }))
}

/// Pumps for as long as the lease is held; others stand by.
async fn ingest_while_held(
    broker: &Broker,
    client: &clickhouse::Client,
    name: &str,
    progress: &Progress,
    tracer: Option<&Tracer>,
    health: &Part,
) -> anyhow::Result<()> {
    let mut lease = Lease::open(broker, LEASE, name).await?;
    while !lease.hold().await? {
        tasks::remove(&TASKS);
        tokio::time::sleep(nats::lease::RENEW_EVERY).await;
    }
    measurements::ingesting(true);
    tasks::list(&TASKS);
    let keep = async {
        while lease.hold().await? {
            let last = broker.last_sequence(names::EVENTS).await?;
            measurements::lag(last.saturating_sub(progress.reached().sequence));
            tokio::time::sleep(nats::lease::RENEW_EVERY).await;
        }
        anyhow::bail!("another metrics service pumps")
    };
    // It is retried apart from the rows of runs, which do not wait for it.
    let never = CancellationToken::new();
    let changes = service::retry_until(&never, START_OVER_PAUSE, "audit log not ingested", || {
        audit::ingest(broker, client)
    });
    tokio::select! {
        _ = changes => anyhow::bail!("audit ingestion stopped"),
        ended = ingest(broker, client, progress, tracer, health) => ended,
        lost = keep => lost,
    }
}

async fn ingest(
    broker: &Broker,
    client: &clickhouse::Client,
    progress: &Progress,
    tracer: Option<&Tracer>,
    health: &Part,
) -> anyhow::Result<()> {
    let mut keeper = CheckpointStore::open(broker).await?;
    if keeper.checkpoint() == Checkpoint::UNKNOWN {
        let next = client.query("SELECT max(sequence) + 1 FROM job_runs").fetch_one().await?;
        tracing::error!(next, "the checkpoint cannot be read: continuing behind the last row");
        keeper.put(Checkpoint { next, pending: None, at: 0 }).await?;
    }
    let stream = stream_id(broker).await?;
    let following = CancellationToken::new();
    let _following = following.clone().drop_guard();
    let next = keeper.checkpoint().next;
    progress.reach(IngestWatermark { sequence: next - 1, at: keeper.checkpoint().at });
    let mut events = StreamReader::start(broker.clone(), names::EVENTS, next, following);
    loop {
        let pending = keeper.checkpoint().pending;
        let first = INGESTION.wait_for(events.recv()).await?;
        if pending.is_some_and(|until| first.sequence > until) {
            let (from, to) = (keeper.checkpoint().next, first.sequence - 1);
            tracing::error!(from, to, "EVENTS was cut before metrics had it: rows are missing");
            let at = keeper.checkpoint().at;
            keeper.put(Checkpoint { next: first.sequence, pending: None, at }).await?;
            bail!("EVENTS was cut in the middle of a block");
        }
        let block = Block::gather(keeper.checkpoint(), first, &mut events).await?;
        if block.gap > 0 {
            tracing::error!(
                messages = block.gap,
                "EVENTS was cut before metrics had it: rows are missing"
            );
        }
        let first = keeper.checkpoint().next;
        if pending.is_none() && !block.rows.is_empty() {
            keeper
                .put(Checkpoint {
                    next: first,
                    pending: Some(block.last),
                    at: keeper.checkpoint().at,
                })
                .await?;
        }
        if !block.rows.is_empty() {
            let token = format!("{stream}-{first}-{}", block.last);
            let started = service::now_ms();
            insert_until_done(client, &block.rows, &token).await;
            if let Some(tracer) = tracer {
                traces::send(tracer, &block.rows, started, service::now_ms());
            }
        }
        keeper.put(Checkpoint { next: block.last + 1, pending: None, at: block.at }).await?;
        progress.reach(IngestWatermark { sequence: block.last, at: block.at });
        INGESTION.succeeded();
        health.works();
    }
}

/// Distinguishes this EVENTS from a later stream of the same name, whose sequences start again.
async fn stream_id(broker: &Broker) -> anyhow::Result<String> {
    let stream = broker.js.get_stream(names::EVENTS).await?;
    Ok(stream.cached_info().created.unix_timestamp_nanos().to_string())
}

/// The rows of a range of EVENTS.
struct Block {
    rows: Vec<RunRow>,
    /// The last message in it; the one before its first, while it is empty.
    last: u64,
    at: Millis,
    gap: u64,
}

impl Block {
    /// Gathers the next block: up to message `until` where its range was fixed before, else
    /// until it is full or nothing more comes for a moment.
    async fn gather(
        Checkpoint { next, at, pending: until }: Checkpoint,
        first: stream_reader::Message,
        events: &mut StreamReader,
    ) -> anyhow::Result<Self> {
        let mut block = Self { rows: Vec::new(), last: next - 1, at, gap: 0 };
        block.add(&first)?;
        let begun = tokio::time::Instant::now();
        let mut deadline = begun + BLOCK_WAIT;
        let mut messages = 1;
        loop {
            match until {
                Some(until) if block.last >= until => {
                    ensure!(
                        block.last == until,
                        "EVENTS {until} was deleted in the middle of a block"
                    );
                    return Ok(block);
                }
                Some(_) => {
                    let next = events.recv().await?;
                    block.add(&next)?;
                }
                None => {
                    let full = block.rows.len() >= BLOCK_ROWS_MAX || messages >= BLOCK_MESSAGES_MAX;
                    let next = match full {
                        true => None,
                        false => tokio::time::timeout_at(deadline, events.recv()).await.ok(),
                    };
                    let Some(next) = next else {
                        // Under load a longer wait pays: each block has a fixed cost.
                        if block.rows.len() < BLOCK_ROWS_BUSY
                            || full
                            || deadline > begun + BLOCK_WAIT
                        {
                            return Ok(block);
                        }
                        deadline = begun + BLOCK_WAIT_BUSY;
                        continue;
                    };
                    block.add(&next?)?;
                    messages += 1;
                }
            }
        }
    }

    fn add(&mut self, message: &stream_reader::Message) -> anyhow::Result<()> {
        let (from, to) = (self.last + 1, message.sequence - 1);
        ensure!(
            message.skipped == message.sequence - from,
            "EVENTS {from} to {to} are in the stream and were not read"
        );
        let headers = message.headers.as_ref();
        match wire::events(message.sequence, headers, &message.payload) {
            Ok((_, batch)) => {
                self.rows.extend(rows(message.sequence, &batch));
                self.at = batch.at;
            }
            Err(error @ wire::Malformed::Newer { .. }) => return Err(error.into()),
            // State sets it aside.
            Err(error) => tracing::debug!(%error, "message of EVENTS skipped"),
        }
        self.last = message.sequence;
        self.gap += message.skipped;
        Ok(())
    }
}

/// Inserts a block, again under the same token until ClickHouse has it: an insert into a table
/// with views is no transaction, and an answer that was lost says nothing.
async fn insert_until_done(client: &clickhouse::Client, rows: &[RunRow], token: &str) {
    // A restart would insert the same block: the token makes that harmless.
    let never = CancellationToken::new();
    let insert = || async {
        let started = Instant::now();
        let inserted = insert(client, rows, token).await;
        measurements::inserted(rows.len(), started.elapsed(), inserted.is_ok());
        match &inserted {
            Ok(()) => ROWS.succeeded(),
            Err(error) => ROWS.failed(format!("not inserted into ClickHouse: {error}")),
        }
        inserted
    };
    service::retry_until(&never, INSERT_PAUSE, "rows not inserted into ClickHouse", insert).await;
}

async fn insert(
    client: &clickhouse::Client,
    rows: &[RunRow],
    token: &str,
) -> clickhouse::error::Result<()> {
    let insert = client.insert::<RunRow>("job_runs").await?;
    let mut insert = insert
        .with_setting("insert_deduplication_token", token)
        .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
        // Blocks are small: handing parts of one around costs more than it wins.
        .with_setting("max_threads", "1")
        .with_setting("max_insert_threads", "1")
        .with_timeouts(Some(INSERT_TIMEOUT), Some(INSERT_TIMEOUT));
    for row in rows {
        insert.write(row).await?;
    }
    insert.end().await
}
