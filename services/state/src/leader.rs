//! The leader's loop: one task owns the state, and everything else reaches it as a message.

mod command_batch;
mod command_processor;
mod core;
mod dispatcher;
mod event_appender;
mod lookups;
mod pressure;
mod projection;
mod reconciler;
mod snapshotter;
mod step_down;
mod stream_trimmer;
mod tasks;
mod time_barrier;

use std::time::{Duration, Instant};

use anyhow::Context;
use nats::{
    Broker, lease, names,
    stream_reader::{self, StreamReader},
};
use service::{BackgroundTask, prometheus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::step_down::StepDown;
use self::{
    command_batch::CommandBatch,
    command_processor::CommandProcessor,
    core::{Core, instant_of},
    dispatcher::Dispatcher,
    projection::Projection,
    reconciler::Reconciler,
    snapshotter::{Snapshotter, snapshot},
    tasks::{Done, Tasks},
    time_barrier::TimeBarrier,
};
use crate::{
    Config,
    clock::Clock,
    election::LeaseHeld,
    measurements,
    query::{Incoming, QueryContext, QueryServer},
    takeover::Started,
};

/// What only the leader does.
pub(crate) const TASKS: [BackgroundTask; 4] = [BUCKET, RECONCILIATION, SNAPSHOTS, tasks::TRIMMING];
/// Writes jobs and records to the bucket.
const BUCKET: BackgroundTask = BackgroundTask::new("bucket");
/// Compares the work streams with what was dispatched.
const RECONCILIATION: BackgroundTask = BackgroundTask::new("reconciliation");
/// Writes snapshots.
const SNAPSHOTS: BackgroundTask = BackgroundTask::new("snapshots");
/// Questions that are answered at once.
const ANSWERS_MAX: usize = 256;
/// The longest wait without a reason to look for due work.
const TICK: Duration = Duration::from_millis(500);
/// How long a stopping leader may take to write active jobs: less than the rest of its lease.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// The state service that leads.
pub(crate) struct Leader<'a> {
    queries: &'a mut QueryServer,
    lease: watch::Receiver<LeaseHeld>,
    broker: Broker,
    core: Core,
    commands: CommandProcessor,
    projection: Projection,
    time_barrier: TimeBarrier,
    dispatcher: Dispatcher,
    reconciler: Reconciler,
    snapshotter: Snapshotter,
    tasks: Tasks,
}

impl<'a> Leader<'a> {
    pub fn new(
        config: &Config,
        broker: Broker,
        queries: &'a mut QueryServer,
        lease: watch::Receiver<LeaseHeld>,
        clock: Clock,
        started: Started,
    ) -> Self {
        let reconciler = Reconciler::new(&queries.workers);
        Self {
            queries,
            lease,
            core: Core::new(started.state, config.rules(), clock, started.run_tokens),
            commands: CommandProcessor::new(broker.clone(), config.allow_missing_run_tokens),
            projection: Projection::new(started.bucket),
            time_barrier: TimeBarrier::default(),
            dispatcher: Dispatcher::new(started.fences),
            reconciler,
            snapshotter: Snapshotter::new(config, started.snapshots, started.commands_bytes),
            tasks: Tasks::new(broker.clone(), config.writes(&broker)),
            broker,
        }
    }

    /// Leads until `stop` is cancelled.
    ///
    /// # Errors
    /// Why it stops leading before. The state in memory must be discarded.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StepDown> {
        let reading = CancellationToken::new();
        let _reading = reading.clone().drop_guard();
        let next = self.core.state.through() + 1;
        let mut commands = StreamReader::start(self.broker.clone(), names::COMMANDS, next, reading);
        let mut connects = self.broker.connects();
        connects.mark_unchanged();
        self.request_heartbeats().await?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Before any result that it may make worthless.
            if connects.has_changed().unwrap_or(false) {
                connects.mark_unchanged();
                self.reconnected().await?;
            }
            self.start_due().await?;
            let deadline = self.deadline();
            tokio::select! {
                () = stop.cancelled() => return self.finish().await,
                message = commands.recv() => {
                    let first = message.map_err(anyhow::Error::from)?;
                    self.process(first, &mut commands).await?;
                }
                Some(done) = self.tasks.next() => self.done(done?)?,
                incoming = self.queries.next() => self.answer(incoming).await,
                () = std::future::ready(()), if self.commands.has_slice(&self.core) => {
                    self.advance_bulk().await?;
                }
                _ = connects.changed() => self.reconnected().await?,
                () = tokio::time::sleep_until(deadline.into()) => {}
                _ = tick.tick() => self.housekeep().await,
            }
        }
    }

    async fn process(
        &mut self,
        first: stream_reader::Message,
        commands: &mut StreamReader,
    ) -> Result<(), StepDown> {
        self.answer_waiting().await;
        let batch = CommandBatch::collect(first, commands);
        self.snapshotter.processed(batch.bytes);
        let held = self.queries.workers.held(Instant::now()).collect();
        self.commands.process(&mut self.core, held, batch).await
    }

    async fn advance_bulk(&mut self) -> Result<(), StepDown> {
        self.answer_waiting().await;
        self.commands.advance_bulk(&mut self.core, &mut self.tasks).await
    }

    /// Starts whatever is due.
    async fn start_due(&mut self) -> Result<(), StepDown> {
        let Self { core, queries, tasks, commands, time_barrier, .. } = self;
        let now = core.now();
        core.state.wake(now);
        if let Some(due) = commands.next_due(core).filter(|due| *due <= now) {
            match time_barrier.passed(core.state.through()) {
                Some(until) if until >= due => commands.due(core, until).await?,
                _ if time_barrier.must_read(due) => tasks.read_commands_end(now),
                _ => {
                    let end = time_barrier.must_check(core.state.through());
                    end.into_iter().for_each(|end| tasks.check_commands_end(end));
                }
            }
        }
        if self.reconciler.is_at_barrier(core) {
            // Heartbeats that arrived before the reading may still be queued.
            queries.drain_heartbeats();
            let reconciled = self.reconciler.reconcile(core, &queries.workers);
            commands.stop_runs(&reconciled.unwanted).await?;
            if !reconciled.lost.is_empty() {
                commands.requeue_lost(core, reconciled.lost).await?;
            }
        }
        let in_doubt = self.dispatcher.take_doubt();
        match self.reconciler.due(core, &queries.workers, in_doubt) {
            Some(request) => tasks.read_streams(request),
            None if in_doubt => self.dispatcher.doubt(),
            None => {}
        }
        if self.projection.must_read_room() {
            tasks.read_room(now);
        }
        self.projection.due(core)?.into_iter().for_each(|write| tasks.write(write));
        let capacity = queries.workers.capacity(Instant::now());
        self.dispatcher.due(core, capacity).into_iter().for_each(|runs| tasks.dispatch(runs));
        let snapshot = self.snapshotter.due(&core.state);
        snapshot.into_iter().for_each(|snapshot| tasks.write_snapshot(snapshot));
        Ok(())
    }

    /// When something is due next, at most a tick away.
    fn deadline(&mut self) -> Instant {
        let core = &mut self.core;
        let now = core.now();
        let jobs = core.state.ready().next_due();
        let permits = core.scheduler.next_reopen();
        let times = jobs.into_iter().chain(permits).map(|at| instant_of(at, now));
        let due = self.commands.next_due(core);
        let due = due.and_then(|due| self.time_barrier.next_look(due, instant_of(due, now)));
        let writes = self.projection.deadline(core).into_iter().chain(self.dispatcher.deadline());
        times.chain(due).chain(writes).fold(Instant::now() + TICK, Instant::min)
    }

    /// Hands the result of a task to the component that requested it.
    fn done(&mut self, done: Done) -> Result<(), StepDown> {
        match done {
            Done::Written(written) => {
                BUCKET.note(&written.result);
                self.projection.done(&mut self.core, written)?;
            }
            Done::Room(room) => self.projection.read_room(room),
            Done::CommandsEnd(end) => self.time_barrier.done(end),
            Done::Dispatched(sent, result) => self.dispatcher.done(&sent, result)?,
            Done::BulkRead(read) => self.commands.done(read),
            Done::Read(result) => {
                RECONCILIATION.note(&result);
                if self.reconciler.done(result) {
                    self.dispatcher.doubt();
                }
            }
            Done::Snapshot(watermark, result) => {
                SNAPSHOTS.note(&result);
                let trim = self.snapshotter.done(&self.core.state, watermark, result);
                trim.into_iter().for_each(|trim| self.tasks.trim(trim));
            }
            Done::Trimmed(result) => {
                tasks::TRIMMING.note(&result);
                if let Err(error) = result {
                    tracing::warn!(error = format!("{error:#}"), "streams not trimmed");
                }
            }
        }
        Ok(())
    }

    /// Answers a question, if the lease says that this service still leads; records heartbeats.
    async fn answer(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Heartbeat(payload) => self.queries.note_heartbeat(&payload),
            Incoming::Question(question) => {
                let renewed = *self.lease.borrow();
                let leads = renewed.is_some_and(|at| at.elapsed() < lease::EXPIRES_AFTER);
                let Core { state, rules, clock, .. } = &mut self.core;
                self.queries.take(question, &mut QueryContext { state, rules, clock, leads }).await;
            }
        }
    }

    /// Answers waiting questions, so that none waits for more than one slice or one batch of
    /// commands.
    async fn answer_waiting(&mut self) {
        for _ in 0..ANSWERS_MAX {
            let Some(incoming) = self.queries.try_next() else { return };
            self.answer(incoming).await;
        }
    }

    /// The broker may have forgotten deliveries, and heartbeats must be received again.
    async fn reconnected(&mut self) -> anyhow::Result<()> {
        self.core.reconnected();
        self.queries.drain_heartbeats();
        self.reconciler.reconnected(&self.queries.workers);
        self.dispatcher.doubt();
        self.request_heartbeats().await
    }

    /// Lets the processors report at once what they run.
    async fn request_heartbeats(&self) -> anyhow::Result<()> {
        let request = names::CONTROL_HEARTBEAT_REQUEST;
        Ok(self.broker.client.publish(request, "".into()).await?)
    }

    async fn housekeep(&mut self) {
        if prometheus::is_measured() {
            let in_flight = self.core.scheduler.out().count();
            let now = self.core.now();
            let demand = self.core.state.demand(&self.core.rules, now);
            let workers = &self.queries.workers;
            measurements::observe(&self.core.state, &demand, now, in_flight, workers);
        }
        let Core { state, rules, clock, .. } = &mut self.core;
        let mut context = QueryContext { state, rules, clock, leads: true };
        self.queries.look_again(&mut context).await;
        if !self.core.lost_runs(&self.queries.workers).is_empty() {
            self.dispatcher.doubt();
        }
    }

    /// Ends in order: a last snapshot, so that the next start has little to replay.
    async fn finish(mut self) -> Result<(), StepDown> {
        if !self.broker.is_connected() {
            tracing::warn!("stopped leading without a last snapshot: NATS is away");
            return Ok(());
        }
        // A snapshot in progress must be completed: nothing deletes a partial one.
        self.snapshotter.hurry();
        while self.snapshotter.is_writing()
            && let Some(done) = self.tasks.next().await
        {
            self.done(done?)?;
        }
        let flushed = tokio::time::timeout(FLUSH_WITHIN, self.flush()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(error = format!("{error:#}"), "the bucket is behind at the end");
        }
        let written = snapshot(&self.core.state).write_now(&self.broker).await;
        let watermark = written.context("no last snapshot")?;
        tracing::info!(events.last = watermark.events, "stopped leading");
        Ok(())
    }

    /// Writes dirty keys, so that clients find active jobs while there is no leader.
    async fn flush(&mut self) -> Result<(), StepDown> {
        let stopping_at = Instant::now();
        loop {
            let write = self.projection.flush(&mut self.core, stopping_at)?;
            write.into_iter().for_each(|write| self.tasks.write(write));
            if !self.projection.is_writing() {
                return Ok(());
            }
            if let Some(done) = self.tasks.next().await {
                self.done(done?)?;
            }
        }
    }
}
