//! The runner: free slots are filled from the streams, class by class; surplus is held and run
//! next; leases are extended and runs that are not wanted any more are stopped.

use std::{
    collections::VecDeque,
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use job::{
    Class, JobId, Kind, Run,
    command::{End, Progress, Started},
};
use mesh::{
    Broker,
    command_publisher::CommandPublisher,
    consumer::{self, Delivery, Pullers},
    heartbeat::{self, Heartbeat},
    names::{self, Verb},
    query::{RunsAnswer, RunsQuery},
    wire::{Item, Stop},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SetOnce, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    Config, Registry,
    admission::{self, AdmissionGuard},
    execute::{self, Ended},
    in_flight::{Admission, InFlightRuns, Kept},
    lanes::Lanes,
    results,
};

/// How long to wait after the broker did not answer a pull.
const PULL_PAUSE: Duration = Duration::from_millis(250);
/// How long an answer about current runs may take; the next extension asks again.
const CURRENT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a delivery waits for a slot before it is handed back for others.
const SURPLUS_WAITS: Duration = Duration::from_secs(1);
/// Deliveries beyond the free slots that are held at most.
const SURPLUS_MAX: usize = 16;
/// The start of a run that ends within this time is not reported separately.
const SHORT_RUN: Duration = Duration::from_millis(10);
/// How long reports are still published after the grace period.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

/// Runs a processor until `stop` is cancelled, then drains it: no new work, running jobs may end
/// within the grace time, the rest is handed back.
///
/// # Errors
/// If NATS cannot be used at all.
pub async fn run(
    config: Config,
    registry: Registry,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    outbound::report_proxies();
    let name = service::instance("processor");
    let Some(broker) = config.nats.connect(&name, &stop).await? else { return Ok(()) };
    let pullers = ensure_pullers(&broker, &registry, &stop).await;
    let Some(pullers) = pullers else { return Ok(()) };
    // Words are still sent while the processor drains; this ends them.
    let silence = CancellationToken::new();
    let commit = |verb| CommandPublisher::start(broker.clone(), verb, None, silence.clone()).0;
    let runner = Arc::new(Runner {
        slots: Arc::new(Semaphore::new(config.concurrency)),
        started: commit(Verb::Started),
        progress: commit(Verb::Progress),
        outcomes: commit(Verb::Outcome),
        in_flight: Arc::default(),
        tasks: TaskTracker::new(),
        release: CancellationToken::new(),
        broker,
        config,
        registry,
        name,
        pullers,
        lanes: Lanes::default(),
        stop,
    });
    let (stop, grace) = (runner.stop.clone(), runner.config.grace());
    let last_words = silence.clone();
    // A broker that is away must not delay the stop: its runs are redelivered.
    tokio::spawn(async move {
        stop.cancelled().await;
        tokio::time::sleep(grace + FLUSH_GRACE).await;
        last_words.cancel();
    });
    runner.clone().work().await?;
    silence.cancel();
    Ok(())
}

async fn ensure_pullers(
    broker: &Broker,
    registry: &Registry,
    stop: &CancellationToken,
) -> Option<Pullers> {
    loop {
        match Pullers::ensure(broker, registry.kinds()).await {
            Ok(pullers) => return Some(pullers),
            Err(error) => tracing::warn!(error = %error, "consumers not ensured yet, trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(PULL_PAUSE) => {}
        }
    }
}

struct Runner {
    broker: Broker,
    config: Config,
    registry: Registry,
    name: String,
    pullers: Pullers,
    lanes: Lanes,
    slots: Arc<Semaphore>,
    started: CommandPublisher,
    progress: CommandPublisher,
    outcomes: CommandPublisher,
    in_flight: Arc<InFlightRuns>,
    tasks: TaskTracker,
    release: CancellationToken,
    stop: CancellationToken,
}

/// A delivery that came in and is not judged; its lease is kept.
struct Arrival {
    delivery: Delivery,
    kept: Kept,
    since: Instant,
}

/// A run in hand that waits for a slot.
struct Held {
    delivery: Delivery,
    stop: CancellationToken,
    since: Instant,
}

/// Waits for a time, or without a limit.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

impl Runner {
    async fn work(self: Arc<Self>) -> anyhow::Result<()> {
        let done = CancellationToken::new();
        let upkeep = tokio::spawn(self.clone().keep_leases(done.clone()));
        let listening = tokio::spawn(self.clone().listen(done.clone()));
        let (parked, mut arrivals) = mpsc::channel(1);
        for class in Class::ALL {
            for kind in self.pullers.kinds_of(class) {
                self.tasks.spawn(self.clone().park(class, kind, parked.clone()));
            }
        }
        drop(parked);
        let claims = self.fill_slots(&mut arrivals).await;
        self.drain(claims, arrivals).await;
        done.cancel();
        upkeep.await?;
        listening.await??;
        self.broker.client.flush().await.ok();
        Ok(())
    }

    /// Fills free slots until it is time to stop; returns who judges deliveries.
    async fn fill_slots(
        self: &Arc<Self>,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> AdmissionGuard {
        let (broker, outcomes) = (self.broker.clone(), self.outcomes.clone());
        let (in_flight, stop) = (self.in_flight.clone(), self.stop.clone());
        let pullers = self.pullers.clone();
        let mut claims =
            AdmissionGuard::new(broker, pullers, self.name.clone(), outcomes, in_flight, stop)
                .await;
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut surplus: Vec<Arrival> = Vec::new();
        for turn in 1.. {
            // No slot is held while there is nothing to run: the puller waits for work, then takes
            // a slot.
            if held.is_empty() && surplus.is_empty() && self.lanes.to_ask(turn).is_empty() {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    arrival = arrivals.recv() => surplus.extend(arrival),
                }
                continue;
            }
            let oldest = held.front().map(|held| held.since);
            let oldest = oldest.into_iter().chain(surplus.first().map(|first| first.since)).min();
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                permit = self.slots.clone().acquire_owned() => permit,
                Some(arrival) = arrivals.recv(), if surplus.len() < SURPLUS_MAX => {
                    surplus.push(arrival);
                    continue;
                }
                () = until(oldest.map(|since| since + SURPLUS_WAITS)) => {
                    // Another processor may have a slot for them.
                    self.hand_back_surplus(&mut claims, &mut held, &mut surplus).await;
                    continue;
                }
            };
            let Ok(permit) = permit else { break };
            if held.is_empty() {
                let mut deliveries = std::mem::take(&mut surplus);
                if deliveries.is_empty() {
                    deliveries = self.next_deliveries(turn, arrivals).await;
                }
                held.extend(self.judge(&mut claims, deliveries).await);
            }
            if let Some(next) = held.pop_front() {
                self.tasks.spawn(self.clone().run(next, permit));
            }
        }
        self.hand_back_surplus(&mut claims, &mut held, &mut surplus).await;
        claims
    }

    /// Takes those in hand that may be run.
    async fn judge(&self, claims: &mut AdmissionGuard, arrivals: Vec<Arrival>) -> Vec<Held> {
        let (deliveries, kept): (Vec<_>, Vec<_>) =
            arrivals.into_iter().map(|arrival| (arrival.delivery, arrival.kept)).unzip();
        let mut held = Vec::new();
        for delivery in claims.judge(deliveries).await {
            held.extend(self.take_in_hand(delivery).await);
        }
        drop(kept);
        held
    }

    async fn hand_back_surplus(
        &self,
        claims: &mut AdmissionGuard,
        held: &mut VecDeque<Held>,
        surplus: &mut Vec<Arrival>,
    ) {
        held.extend(self.judge(claims, std::mem::take(surplus)).await);
        for unbegun in held.drain(..) {
            self.hand_back(unbegun.delivery).await;
        }
    }

    /// Pulls as many runs as there are free slots from the lanes with work, class by class. Not
    /// cancel-safe: pulled runs belong to this call.
    async fn next_deliveries(
        &self,
        turn: usize,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> Vec<Arrival> {
        // The caller holds the permit of one more slot.
        let free = self.slots.available_permits() + 1;
        let mut taken = Vec::new();
        while let Ok(arrival) = arrivals.try_recv() {
            taken.push(arrival);
        }
        for (class, kind) in self.lanes.to_ask(turn) {
            let asked = free.saturating_sub(taken.len());
            if asked == 0 || self.stop.is_cancelled() {
                break;
            }
            match self.pullers.take(class, kind, asked).await {
                Ok(more) => {
                    self.lanes.note(class, kind, more.len() >= asked);
                    taken.extend(more.into_iter().map(|delivery| self.arrival(delivery)));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "ready work not pulled, trying again");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
            }
        }
        taken
    }

    fn arrival(&self, delivery: Delivery) -> Arrival {
        let kept = self.in_flight.keep(delivery.lease());
        Arrival { delivery, kept, since: Instant::now() }
    }

    /// Waits for work of one class and kind, one run at a time, for as long as slots are free.
    async fn park(self: Arc<Self>, class: Class, kind: Kind, parked: mpsc::Sender<Arrival>) {
        while !self.stop.is_cancelled() {
            // A slot is looked for and given back at once: this only waits for there to be one.
            let free = tokio::select! {
                () = self.stop.cancelled() => return,
                free = self.slots.acquire() => free,
            };
            drop(free);
            // A pull that waits is not cut off: what it brings after the stop is handed back.
            match self.pullers.wait(class, kind).await {
                Ok(None) => {}
                Ok(Some(delivery)) => {
                    if delivery.behind > 0 {
                        self.lanes.note(class, kind, true);
                    }
                    if parked.send(self.arrival(delivery)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "ready work not awaited, trying again");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
            }
        }
    }

    async fn take_in_hand(&self, delivery: Delivery) -> Option<Held> {
        let (job, run) = (delivery.work.job, delivery.work.run);
        match self.in_flight.take(job, run, delivery.lease()) {
            Admission::RunInFlight(stop) => Some(Held { delivery, stop, since: Instant::now() }),
            Admission::Already => None,
            Admission::Stopped => {
                delivery.ack().await;
                None
            }
        }
    }

    /// Runs one job in its slot.
    async fn run(self: Arc<Self>, held: Held, permit: OwnedSemaphorePermit) {
        let Held { delivery, stop, .. } = held;
        let class = delivery.class;
        let work = Arc::new(delivery.work.clone());
        let started_at = service::now_ms();
        let begun = Instant::now();
        let (begin, told) = (Once::new(), Arc::new(SetOnce::new()));
        let say_started = || begin.call_once(|| self.say_started(&work, started_at, told.clone()));
        let run = async |_: &_| {
            let limit = self.config.time_limit();
            let release = self.release.clone();
            let say = |progress| {
                say_started();
                self.say_progress(&work, progress, told.clone());
            };
            let running = execute::run(&self.registry, work.clone(), limit, stop, release, say);
            tokio::pin!(running);
            // An outcome implies that the run started: for a run that ends at once nothing else is
            // reported.
            tokio::select! {
                biased;
                ended = &mut running => return ended,
                () = tokio::time::sleep(SHORT_RUN) => say_started(),
            }
            running.await
        };
        let record = async |work: &mesh::wire::Work, ended| {
            let (end, usage) = match ended {
                Ended::Said(end, usage) => (end, usage),
                Ended::Released(usage) => (End::Released, usage),
                Ended::Stopped(usage) if usage.is_nothing() => return Ok(()),
                // State refuses the outcome of a run that is over, and counts what it cost.
                Ended::Stopped(usage) => {
                    let error = "the run was stopped".into();
                    (End::Retry { error, after_ms: None }, usage)
                }
            };
            let most = self.config.result_bytes_max();
            let end = results::store_large(&self.broker, work, end, most).await;
            let mut report = execute::report(work, &self.name, class, started_at, end, usage);
            let took_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
            // The end by the clock that does not jump.
            report.finished_at = started_at.saturating_add(took_ms);
            admission::commit(&self.outcomes, report).await
        };
        if let Err(error) = consumer::run_record_ack(delivery, run, record).await {
            tracing::error!(job.id = %work.job, error = %error, "outcome not recorded: the run comes again");
        }
        self.let_go(work.job, work.run).await;
        drop(permit);
    }

    /// Says that a run began, and does not wait: its outcome implies it.
    fn say_started(self: &Arc<Self>, work: &mesh::wire::Work, at: i64, told: Arc<SetOnce<()>>) {
        let (job, run, worker) = (work.job, work.run, self.name.as_str().into());
        let item = Item { id: Uuid::now_v7(), command: Started { job, run, worker, at } };
        let json = serde_json::to_vec(&item).expect("ids and numbers are JSON");
        let started = self.started.clone();
        tokio::spawn(async move {
            let _ = started.commit(json).await;
            // Only this task sets it.
            let _ = told.set(());
        });
    }

    /// Publishes the progress of a run without waiting. The start is published first: state ignores
    /// the progress of a run that has not started.
    fn say_progress(&self, work: &mesh::wire::Work, progress: job::Json, told: Arc<SetOnce<()>>) {
        let item = Item {
            id: Uuid::now_v7(),
            command: Progress { job: work.job, run: work.run, progress },
        };
        let json = serde_json::to_vec(&item).expect("ids and JSON are JSON");
        let committer = self.progress.clone();
        tokio::spawn(async move {
            told.wait().await;
            let _ = committer.commit(json).await;
        });
    }

    /// Waits for what runs, hands back what does not end in time.
    async fn drain(
        self: &Arc<Self>,
        mut claims: AdmissionGuard,
        mut arrivals: mpsc::Receiver<Arrival>,
    ) {
        tracing::info!(running = self.in_flight.runs().len(), "draining");
        self.publish_heartbeat().await;
        self.tasks.close();
        let grace = tokio::time::sleep(self.config.grace());
        tokio::pin!(grace);
        let ended = self.tasks.wait();
        tokio::pin!(ended);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                arrival = arrivals.recv(), if open => match arrival {
                    Some(arrival) => {
                        for held in self.judge(&mut claims, vec![arrival]).await {
                            self.hand_back(held.delivery).await;
                        }
                    }
                    None => open = false,
                },
                () = &mut grace, if !self.release.is_cancelled() => self.release.cancel(),
                () = &mut ended => return,
            }
        }
    }

    /// Hands back a run before its start.
    async fn hand_back(&self, delivery: Delivery) {
        let (job, run) = (delivery.work.job, delivery.work.run);
        let end = if delivery.redelivered { End::Redelivered } else { End::Released };
        let outcome = admission::outcome(&delivery.work, &self.name, end, delivery.class);
        if admission::commit(&self.outcomes, outcome).await.is_ok() {
            delivery.ack().await;
        }
        self.let_go(job, run).await;
    }

    async fn let_go(&self, job: JobId, run: Run) {
        if let Some(again) = self.in_flight.release(job, run) {
            again.ack().await;
        }
    }

    /// Extends the leases of what is in hand, asks which of it is still wanted, and says that
    /// this processor is there.
    async fn keep_leases(self: Arc<Self>, done: CancellationToken) {
        let mut extend = tokio::time::interval(consumer::EXTEND_EVERY);
        let mut present = tokio::time::interval(heartbeat::PERIOD);
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                _ = present.tick() => self.publish_heartbeat().await,
                _ = extend.tick() => {
                    for lease in self.in_flight.leases() {
                        lease.extend().await;
                    }
                    tokio::spawn(self.clone().stop_what_is_not_current());
                }
            }
        }
    }

    async fn stop_what_is_not_current(self: Arc<Self>) {
        let runs = self.in_flight.runs();
        if runs.is_empty() {
            return;
        }
        let question = RunsQuery { processor: self.name.clone(), runs };
        let answer = self.broker.query(names::QUERY_CURRENT, &question, CURRENT_PATIENCE).await;
        // State away: everything goes on, the next extension asks again.
        let stale: RunsAnswer = match answer {
            Ok(answer) => answer,
            Err(error) => return tracing::debug!(error = %error, "current runs not known"),
        };
        for (job, run) in stale.runs {
            self.in_flight.stop(job, run);
        }
    }

    async fn publish_heartbeat(&self) {
        let said = Heartbeat {
            processor: self.name.as_str().into(),
            capacity: self.config.concurrency,
            kinds: self.pullers.kinds().to_vec(),
            running: self.in_flight.runs(),
            draining: self.stop.is_cancelled(),
        };
        let body = serde_json::to_vec(&said).expect("a heartbeat is JSON");
        // A lost heartbeat is followed by another in two seconds.
        let _ = self.broker.client.publish(names::heartbeat(&self.name), body.into()).await;
    }

    /// Listens for runs to stop, and for roll calls.
    async fn listen(self: Arc<Self>, done: CancellationToken) -> anyhow::Result<()> {
        let mut stops = self.broker.client.subscribe(names::CONTROL_CANCEL).await?;
        let mut calls = self.broker.client.subscribe(names::CONTROL_HEARTBEAT_REQUEST).await?;
        loop {
            tokio::select! {
                () = done.cancelled() => return Ok(()),
                Some(message) = stops.next() => match serde_json::from_slice::<Stop>(&message.payload) {
                    Ok(stop) => stop.runs.iter().for_each(|(job, run)| self.in_flight.stop(*job, *run)),
                    Err(error) => tracing::warn!(error = %error, "a hint to stop could not be read"),
                },
                Some(_) = calls.next() => self.publish_heartbeat().await,
            }
        }
    }
}
