//! The runner: free slots are filled from the streams, class by class; surplus is held and run
//! next; leases are extended and runs that are not wanted any more are stopped.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::StreamExt;
use job::{
    Class, Kind,
    command::{End, Started},
};
use mesh::{
    Broker,
    ask::{AskRuns, RunsAnswer},
    commit::Committer,
    names::{self, Verb},
    presence::{self, Presence},
    pull::{self, Delivery, Pullers},
    wire::{Item, Stop},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    Config, Registry,
    claim::{self, Claims},
    hands::{Hands, Taken},
    running::{self, Ended},
};

/// How long to wait after the broker did not answer a pull.
const PULL_PAUSE: Duration = Duration::from_millis(250);
/// How long an answer about current runs may take; the next extension asks again.
const CURRENT_PATIENCE: Duration = Duration::from_secs(2);
/// Every so many turns the lowest class is asked first, so that it never starves behind the others.
const LOW_FIRST_TURN: usize = 10;

/// Runs a processor until `stop` is cancelled, then drains it: no new work, running jobs may end
/// within the grace time, the rest is handed back.
///
/// # Errors
/// Where NATS cannot be used at all.
pub async fn run(
    config: Config,
    registry: Registry,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let name = service::instance("processor");
    let Some(broker) = config.nats.connect(&name, &stop).await? else { return Ok(()) };
    let pullers = ensure_pullers(&broker, &registry, &stop).await;
    let Some(pullers) = pullers else { return Ok(()) };
    // Words are still sent while the processor drains; this ends them.
    let silence = CancellationToken::new();
    let commit = |verb| Committer::start(broker.clone(), verb, None, silence.clone()).0;
    let runner = Arc::new(Runner {
        slots: Arc::new(Semaphore::new(config.concurrency)),
        started: commit(Verb::Started),
        outcomes: commit(Verb::Outcome),
        hands: Hands::default(),
        tasks: TaskTracker::new(),
        release: CancellationToken::new(),
        broker,
        config,
        registry,
        name,
        pullers,
        stop,
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
    slots: Arc<Semaphore>,
    started: Committer,
    outcomes: Committer,
    hands: Hands,
    tasks: TaskTracker,
    release: CancellationToken,
    stop: CancellationToken,
}

/// A run in hand that waits for a slot.
struct Held {
    delivery: Delivery,
    stop: CancellationToken,
}

impl Runner {
    async fn work(self: Arc<Self>) -> anyhow::Result<()> {
        let done = CancellationToken::new();
        let upkeep = tokio::spawn(self.clone().keep_leases(done.clone()));
        let listening = tokio::spawn(self.clone().listen(done.clone()));
        let (parked, mut arrivals) = mpsc::channel(1);
        for class in Class::ALL {
            for kind in self.pullers.kinds() {
                self.tasks.spawn(self.clone().park(class, *kind, parked.clone()));
            }
        }
        drop(parked);
        self.fill_slots(&mut arrivals).await;
        self.drain(arrivals).await;
        done.cancel();
        upkeep.await?;
        listening.await??;
        self.broker.client.flush().await.ok();
        Ok(())
    }

    /// Fills free slots until it is time to stop.
    async fn fill_slots(self: &Arc<Self>, arrivals: &mut mpsc::Receiver<Delivery>) {
        let (broker, outcomes) = (self.broker.clone(), self.outcomes.clone());
        let mut claims = Claims::new(broker, self.name.clone(), outcomes).await;
        let mut held: VecDeque<Held> = VecDeque::new();
        for turn in 1.. {
            let permit = tokio::select! {
                () = self.stop.cancelled() => break,
                permit = self.slots.clone().acquire_owned() => permit,
            };
            let Ok(permit) = permit else { break };
            if held.is_empty() {
                let deliveries = tokio::select! {
                    () = self.stop.cancelled() => break,
                    deliveries = self.next_deliveries(turn, arrivals) => deliveries,
                };
                let runnable = claims.judge(deliveries).await;
                for delivery in runnable {
                    held.extend(self.take_in_hand(delivery).await);
                }
            }
            if let Some(next) = held.pop_front() {
                self.tasks.spawn(self.clone().run(next, permit));
            }
        }
        for unbegun in held {
            self.hand_back(unbegun.delivery).await;
        }
    }

    /// Takes as many runs as slots are free, class by class; waits where there are none.
    async fn next_deliveries(
        &self,
        turn: usize,
        arrivals: &mut mpsc::Receiver<Delivery>,
    ) -> Vec<Delivery> {
        // The caller holds the permit of one more slot.
        let free = self.slots.available_permits() + 1;
        let mut taken = Vec::new();
        while let Ok(delivery) = arrivals.try_recv() {
            taken.push(delivery);
        }
        let mut classes = Class::ALL;
        if turn.is_multiple_of(LOW_FIRST_TURN) {
            classes.reverse();
        }
        for class in classes {
            if taken.len() >= free {
                break;
            }
            match self.pullers.take(class, free - taken.len()).await {
                Ok(more) => taken.extend(more),
                Err(error) => {
                    tracing::warn!(error = %error, "ready work not pulled, trying again");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
            }
        }
        if taken.is_empty() {
            taken.extend(arrivals.recv().await);
        }
        taken
    }

    /// Waits for work of one class and kind, one run at a time, for as long as slots are free.
    async fn park(self: Arc<Self>, class: Class, kind: Kind, parked: mpsc::Sender<Delivery>) {
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
                    let lease = delivery.lease();
                    let sending = parked.send(delivery);
                    tokio::pin!(sending);
                    let sent = loop {
                        tokio::select! {
                            sent = &mut sending => break sent,
                            () = tokio::time::sleep(pull::EXTEND_EVERY) => lease.extend().await,
                        }
                    };
                    if sent.is_err() {
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
        match self.hands.take(job, run, delivery.lease()) {
            Taken::InHand(stop) => Some(Held { delivery, stop }),
            Taken::Already => None,
            Taken::Stopped => {
                delivery.ack().await;
                None
            }
        }
    }

    /// Runs one job in its slot.
    async fn run(self: Arc<Self>, held: Held, permit: OwnedSemaphorePermit) {
        let Held { delivery, stop } = held;
        let class = delivery.class;
        let work = Arc::new(delivery.work.clone());
        let started_at = service::now_ms();
        let begun = std::time::Instant::now();
        self.say_started(&work, started_at);
        let run = async |_: &_| {
            let limit = self.config.time_limit();
            let release = self.release.clone();
            running::run(&self.registry, work.clone(), limit, stop, release).await
        };
        let record = async |work: &_, ended| {
            let (end, spent) = match ended {
                Ended::Said(end, spent) => (end, spent),
                Ended::Released => (End::Released, job::Spent::default()),
                Ended::Stopped => return Ok(()),
            };
            let mut word = running::word(work, &self.name, class, started_at, end, spent);
            let took_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
            // The end by the clock that does not jump.
            word.finished_at = started_at.saturating_add(took_ms);
            claim::commit(&self.outcomes, word).await
        };
        if let Err(error) = pull::run_record_ack(delivery, run, record).await {
            tracing::error!(job.id = %work.job, error = %error, "outcome not recorded: the run comes again");
        }
        self.hands.release(work.job, work.run);
        drop(permit);
    }

    /// Says that a run began, and does not wait: its outcome implies it.
    fn say_started(self: &Arc<Self>, work: &mesh::wire::Work, at: i64) {
        let (job, run, worker) = (work.job, work.run, self.name.as_str().into());
        let item = Item { id: Uuid::now_v7(), ask: Started { job, run, worker, at } };
        let json = serde_json::to_vec(&item).expect("ids and numbers are JSON");
        let started = self.started.clone();
        tokio::spawn(async move {
            let _ = started.commit(json).await;
        });
    }

    /// Waits for what runs, hands back what does not end in time.
    async fn drain(self: &Arc<Self>, mut arrivals: mpsc::Receiver<Delivery>) {
        tracing::info!(running = self.hands.runs().len(), "draining");
        self.say_presence().await;
        self.tasks.close();
        let grace = tokio::time::sleep(self.config.grace());
        tokio::pin!(grace);
        let ended = self.tasks.wait();
        tokio::pin!(ended);
        let mut open = true;
        loop {
            tokio::select! {
                () = &mut ended => return,
                () = &mut grace, if !self.release.is_cancelled() => self.release.cancel(),
                arrival = arrivals.recv(), if open => match arrival {
                    Some(delivery) => self.hand_back(delivery).await,
                    None => open = false,
                },
            }
        }
    }

    /// Hands back a run that was not begun.
    async fn hand_back(&self, delivery: Delivery) {
        let (job, run) = (delivery.work.job, delivery.work.run);
        let end = if delivery.redelivered { End::Reported } else { End::Released };
        let outcome = claim::outcome(&delivery.work, &self.name, end, delivery.class);
        if claim::commit(&self.outcomes, outcome).await.is_ok() {
            delivery.ack().await;
        }
        self.hands.release(job, run);
    }

    /// Extends the leases of what is in hand, asks which of it is still wanted, and says that
    /// this processor is there.
    async fn keep_leases(self: Arc<Self>, done: CancellationToken) {
        let mut extend = tokio::time::interval(pull::EXTEND_EVERY);
        let mut present = tokio::time::interval(presence::PERIOD);
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                _ = present.tick() => self.say_presence().await,
                _ = extend.tick() => {
                    for lease in self.hands.leases() {
                        lease.extend().await;
                    }
                    tokio::spawn(self.clone().stop_what_is_not_current());
                }
            }
        }
    }

    async fn stop_what_is_not_current(self: Arc<Self>) {
        let runs = self.hands.runs();
        if runs.is_empty() {
            return;
        }
        let question = AskRuns { processor: self.name.clone(), runs };
        let answer = self.broker.ask(names::ASK_CURRENT, &question, CURRENT_PATIENCE).await;
        // State away: everything goes on, the next extension asks again.
        let stale: RunsAnswer = match answer {
            Ok(answer) => answer,
            Err(error) => return tracing::debug!(error = %error, "current runs not known"),
        };
        for (job, run) in stale.runs {
            self.hands.stop(job, run);
        }
    }

    async fn say_presence(&self) {
        let said = Presence {
            processor: self.name.as_str().into(),
            capacity: self.config.concurrency,
            kinds: self.pullers.kinds().to_vec(),
            running: self.hands.runs(),
            draining: self.stop.is_cancelled(),
        };
        let body = serde_json::to_vec(&said).expect("a presence is JSON");
        // What is not heard now is said again in two seconds.
        let _ = self.broker.client.publish(names::presence(&self.name), body.into()).await;
    }

    /// Listens for runs to stop, and for roll calls.
    async fn listen(self: Arc<Self>, done: CancellationToken) -> anyhow::Result<()> {
        let mut stops = self.broker.client.subscribe(names::CONTROL_CANCEL).await?;
        let mut calls = self.broker.client.subscribe(names::CONTROL_ROLL_CALL).await?;
        loop {
            tokio::select! {
                () = done.cancelled() => return Ok(()),
                Some(message) = stops.next() => match serde_json::from_slice::<Stop>(&message.payload) {
                    Ok(stop) => stop.runs.iter().for_each(|(job, run)| self.hands.stop(*job, *run)),
                    Err(error) => tracing::warn!(error = %error, "a hint to stop could not be read"),
                },
                Some(_) = calls.next() => self.say_presence().await,
            }
        }
    }
}
