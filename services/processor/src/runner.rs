//! The processor: it fills free slots from the streams of ready work, runs jobs, and drains when it is
//! stopped.

mod control;
mod drain;
mod pull;
mod run_task;

use std::{sync::Arc, time::Duration};

use job::{PriorityClass, time::Millis};
use nats::{Broker, command_publisher::CommandPublisher, consumer::Pullers, names::Verb};
use service::{Health, Identity};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, Registry,
    in_flight::InFlightRuns,
    lanes::Lanes,
    measurements,
    prefetch::{self, RunDurations},
};

/// How long to wait after the broker did not answer a pull.
const PULL_PAUSE: Duration = Duration::from_millis(250);
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
    let name = service::instance(Identity::Processor);
    let health = Health::default();
    let streams = health.part("streams", None);
    let describe = measurements::describe;
    config.measurements.serve(&health, Identity::Processor, describe, stop.clone()).await?;
    let broker = config.nats.connect(Identity::Processor, &name, &stop).await?;
    let Some(broker) = broker else { return Ok(()) };
    health.connected(&broker);
    let pullers = ensure_pullers(&broker, &registry, &stop).await;
    let Some(pullers) = pullers else { return Ok(()) };
    streams.works();
    let types: Vec<&str> = registry.job_types().iter().map(|job_type| job_type.name()).collect();
    tracing::info!(
        processor = name,
        types = types.join(","),
        slots = config.concurrency,
        "takes work"
    );
    // Reports are still published while the processor drains; this ends them.
    let end_reports = CancellationToken::new();
    let commit = |verb| CommandPublisher::start(broker.clone(), verb, None, end_reports.clone()).0;
    let runner = Arc::new(Runner {
        slots: Arc::new(Semaphore::new(config.concurrency)),
        recordings: Semaphore::new(prefetch::recording_permits(config.concurrency)),
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
        started_at: service::now_ms(),
        pullers,
        lanes: Lanes::default(),
        durations: RunDurations::default(),
        stop,
    });
    let (stop, grace) = (runner.stop.clone(), runner.config.grace());
    let ended_reports = end_reports.clone();
    // A broker that is away must not delay the stop: its runs are redelivered.
    tokio::spawn(async move {
        stop.cancelled().await;
        streams.fails("draining");
        tokio::time::sleep(grace + FLUSH_GRACE).await;
        ended_reports.cancel();
    });
    runner.clone().work().await?;
    end_reports.cancel();
    Ok(())
}

async fn ensure_pullers(
    broker: &Broker,
    registry: &Registry,
    stop: &CancellationToken,
) -> Option<Pullers> {
    let ensure = || Pullers::ensure(broker, registry.job_types());
    service::retry_until(stop, PULL_PAUSE, "consumers not ensured yet", ensure).await
}

struct Runner {
    broker: Broker,
    config: Config,
    registry: Registry,
    name: String,
    /// By this machine's clock.
    started_at: Millis,
    pullers: Pullers,
    lanes: Lanes,
    durations: RunDurations,
    slots: Arc<Semaphore>,
    /// Permits to record outcomes while the slots of their runs take the next ones.
    recordings: Semaphore,
    started: CommandPublisher,
    progress: CommandPublisher,
    outcomes: CommandPublisher,
    in_flight: Arc<InFlightRuns>,
    tasks: TaskTracker,
    release: CancellationToken,
    stop: CancellationToken,
}

impl Runner {
    async fn work(self: Arc<Self>) -> anyhow::Result<()> {
        let done = CancellationToken::new();
        let upkeep = tokio::spawn(self.clone().extend_leases(done.clone()));
        let listening = tokio::spawn(self.clone().listen(done.clone()));
        let (sender, mut arrivals) = mpsc::channel(1);
        for class in PriorityClass::ALL {
            for job_type in self.pullers.job_types_of(class) {
                self.tasks.spawn(self.clone().wait_for_work(class, job_type, sender.clone()));
            }
        }
        drop(sender);
        let admission = self.fill_slots(&mut arrivals).await;
        self.drain(admission, arrivals).await;
        done.cancel();
        upkeep.await?;
        listening.await??;
        self.broker.flush().await;
        Ok(())
    }
}
