//! The leader's loop: one task owns the state; everything else comes to it as a message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use job::{State, time::Millis};
use mesh::{
    Broker,
    bucket::Fence,
    lease, names, publish,
    snapshot::SnapshotWatermark,
    stream_reader::{self, StreamReader},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    clock::Clock,
    command_processor::BulkReads,
    dispatcher::{Dispatcher, Sent},
    election::LeaseHeld,
    projection::Written,
    queries::{Incoming, QueryContext, QueryServer},
    reconciler::Reading,
    takeover::Started,
};

/// Messages of COMMANDS processed at once.
const COMMAND_MESSAGES_MAX: usize = 256;
/// Bytes of commands processed at once.
const COMMAND_BYTES_MAX: usize = 8_000_000;
/// Questions that are answered at once.
const ANSWERS_MAX: usize = 256;
/// How often the loop looks around without a reason.
const TICK: Duration = Duration::from_millis(500);

/// What a task of the leader came back with.
pub(crate) enum Done {
    /// A write of the bucket.
    Written(Written),
    /// A dispatch.
    Dispatched(Sent, Result<publish::Ack, publish::Error>),
    /// What a bulk operation needs.
    BulkRead(job::Lookups),
    /// A reading of the work streams.
    Read(Result<Reading, mesh::work_queue::Error>),
    /// A snapshot.
    Snapshot(SnapshotWatermark, Result<(), mesh::snapshot::Error>),
}

/// The state service that leads.
pub(crate) struct Leader<'a> {
    pub queries: &'a mut QueryServer,
    lease: watch::Receiver<LeaseHeld>,
    clock: Clock,
    pub config: Config,
    pub rules: job::Config,
    pub broker: Broker,
    pub state: State,
    /// The last message of EVENTS.
    pub last: u64,
    pub bucket: Fence,
    pub writing: bool,
    /// When the last write of the bucket began.
    pub wrote_at: Instant,
    /// When a bucket that was full is written again.
    pub write_again_at: Instant,
    pub dispatcher: Dispatcher,
    /// Since when heartbeats are received without interruption.
    pub settled_since: Instant,
    pub reading: Option<Reading>,
    pub reading_under_way: bool,
    pub last_reading: Instant,
    pub reaches: Vec<SnapshotWatermark>,
    pub last_snapshot: Instant,
    /// How long the state took to be written down.
    pub snapshot_took: Duration,
    pub snapshotting: bool,
    /// Whether the snapshot that is being written takes no pauses.
    pub hurry: Arc<AtomicBool>,
    /// Bytes of commands processed since the last snapshot started.
    pub folded_bytes: u64,
    pub bulk_reads: BulkReads,
    pub done: mpsc::Sender<Done>,
    pub finished: mpsc::Receiver<Done>,
}

impl<'a> Leader<'a> {
    pub fn new(
        config: Config,
        broker: Broker,
        queries: &'a mut QueryServer,
        lease: watch::Receiver<LeaseHeld>,
        clock: Clock,
        started: Started,
    ) -> Self {
        let (done, finished) = mpsc::channel(16);
        let now = Instant::now();
        Self {
            queries,
            lease,
            clock,
            rules: config.rules(),
            config,
            broker,
            state: started.state,
            last: started.last,
            bucket: started.bucket,
            writing: false,
            wrote_at: now,
            write_again_at: now,
            dispatcher: Dispatcher::new(started.fences),
            settled_since: now,
            reading: None,
            reading_under_way: false,
            last_reading: now,
            reaches: started.snapshots,
            last_snapshot: now,
            snapshot_took: Duration::ZERO,
            snapshotting: false,
            hurry: Arc::default(),
            folded_bytes: 0,
            bulk_reads: BulkReads::default(),
            done,
            finished,
        }
    }

    /// True if a slice of a bulk operation can be decided.
    fn has_slice(&self) -> bool {
        self.state.has_bulk() && !self.bulk_reads.is_reading
    }

    /// The time that is decided at.
    pub fn now(&self) -> Millis {
        self.clock.now(self.state.at())
    }

    /// Leads until `stop` is cancelled, or until another replica leads.
    ///
    /// # Errors
    /// If the state in memory can no longer be trusted: the caller starts over.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let following = CancellationToken::new();
        let _following = following.clone().drop_guard();
        let next = self.state.through() + 1;
        let mut commands =
            StreamReader::start(self.broker.clone(), names::COMMANDS, next, following);
        let mut connects = self.broker.connects();
        connects.mark_unchanged();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.start_due().await?;
            let timer = self.until_next_timer();
            tokio::select! {
                () = stop.cancelled() => return self.finish().await,
                message = commands.recv() => {
                    self.answer_waiting().await;
                    self.process_available(message?, &mut commands).await?;
                }
                Some(done) = self.finished.recv() => self.take_in(done)?,
                came = self.queries.next() => self.answer(came).await,
                () = std::future::ready(()), if self.has_slice() => {
                    self.answer_waiting().await;
                    self.run_slices().await?;
                },
                _ = connects.changed() => self.reconnected().await?,
                () = tokio::time::sleep(timer) => {}
                _ = tick.tick() => self.housekeep().await,
            }
        }
    }

    /// Answers a question, if the lease says that this service still leads; records heartbeats.
    async fn answer(&mut self, came: Incoming) {
        match came {
            Incoming::Heartbeat(payload) => self.queries.note_heartbeat(&payload),
            Incoming::Question(question) => {
                let renewed = *self.lease.borrow();
                let leads = renewed.is_some_and(|at| at.elapsed() < lease::EXPIRES_AFTER);
                let (state, rules, clock) = (&mut self.state, &self.rules, &self.clock);
                self.queries.take(question, &mut QueryContext { state, rules, clock, leads }).await;
            }
        }
    }

    /// Answers waiting queries, so that none waits for more than one slice or one batch of
    /// commands.
    async fn answer_waiting(&mut self) {
        for _ in 0..ANSWERS_MAX {
            let Some(came) = self.queries.try_next() else { return };
            self.answer(came).await;
        }
    }

    /// Folds a message and what else is there, bounded in number and bytes.
    async fn process_available(
        &mut self,
        first: stream_reader::Message,
        commands: &mut StreamReader,
    ) -> anyhow::Result<()> {
        let mut bytes = first.payload.len();
        let mut messages = vec![first];
        while messages.len() < COMMAND_MESSAGES_MAX && bytes < COMMAND_BYTES_MAX {
            let Some(message) = commands.try_recv() else { break };
            bytes += message.payload.len();
            messages.push(message);
        }
        self.folded_bytes += bytes as u64;
        self.process(messages).await
    }

    /// Starts whatever may start now.
    async fn start_due(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        self.state.wake(now);
        self.fire_due_schedules().await?;
        self.start_due_reconciliation().await?;
        self.start_due_reading();
        self.start_due_projection()?;
        self.start_due_dispatch();
        self.start_due_snapshot();
        Ok(())
    }

    fn start_due_dispatch(&mut self) {
        let capacity = self.queries.workers.capacity(Instant::now());
        let now = self.now();
        for plan in self.dispatcher.plan(&mut self.state, &self.rules, now, capacity) {
            let (broker, done) = (self.broker.clone(), self.done.clone());
            let writes = self.config.writes();
            tokio::spawn(async move {
                let sent = Sent { class: plan.class, runs: plan.messages.len() as u64 };
                let end = broker.dispatch(plan.class, plan.fence, plan.messages, writes).await;
                let _ = done.send(Done::Dispatched(sent, end)).await;
            });
        }
    }

    pub fn take_in(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Written(written) => self.written(written)?,
            Done::Dispatched(sent, end) => {
                let leads = self.dispatcher.dispatched(&sent, end);
                anyhow::ensure!(leads, "another state service dispatches");
            }
            Done::BulkRead(read) => self.bulk_read(read),
            Done::Read(Ok(reading)) => self.reading = Some(reading),
            Done::Read(Err(error)) => {
                tracing::warn!(error = %error, "work streams not read, trying again");
                self.reading_under_way = false;
                self.dispatcher.suspect();
            }
            Done::Snapshot(reach, end) => self.snapshot_put(reach, end),
        }
        Ok(())
    }

    /// The broker was away: it may have forgotten deliveries, and heartbeats must be received
    /// again.
    async fn reconnected(&mut self) -> anyhow::Result<()> {
        self.settled_since = Instant::now();
        self.dispatcher.suspect();
        self.broker.client.publish(names::CONTROL_HEARTBEAT_REQUEST, "".into()).await?;
        Ok(())
    }

    async fn housekeep(&mut self) {
        let (state, rules, clock) = (&mut self.state, &self.rules, &self.clock);
        let mut known = QueryContext { state, rules, clock, leads: true };
        self.queries.look_again(&mut known).await;
        if !self.lost_runs().is_empty() {
            self.dispatcher.suspect();
        }
    }

    /// How long until a job's time comes, within a tick.
    fn until_next_timer(&mut self) -> Duration {
        let due = self.state.ready().next_due();
        let reopen = self.dispatcher.next_reopen();
        let next = due.into_iter().chain(reopen).chain(self.state.next_fire()).min();
        let left_ms = next.map_or(i64::MAX, |at| at - self.now()).max(0);
        let soonest = self.next_write().into_iter().chain(self.dispatcher.next_again()).min();
        let soonest = soonest.map_or(TICK, |at| at.saturating_duration_since(Instant::now()));
        Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)).min(TICK).min(soonest)
    }

    /// Ends in order: a last snapshot, so that the next start has little to replay.
    async fn finish(&mut self) -> anyhow::Result<()> {
        // A write in progress must finish: nothing deletes a partial snapshot.
        self.hurry.store(true, Ordering::Relaxed);
        while self.snapshotting
            && let Some(done) = self.finished.recv().await
        {
            self.take_in(done)?;
        }
        self.flush().await;
        let (reach, frozen) = self.snapshot();
        self.broker
            .put_snapshot(reach, move |to| frozen.write(to))
            .await
            .context("no last snapshot")?;
        tracing::info!(events.last = reach.events, "stopped leading");
        Ok(())
    }
}
