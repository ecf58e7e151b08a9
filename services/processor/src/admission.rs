//! Which deliveries may be run: each run by its first delivery only.
//!
//! A redelivered message, or one not newer than its stream's end when the server was last found to be
//! another one (a broker that was killed forgets its deliveries), is reported and acked, and state makes
//! it the job's next run. For messages that were in the streams when this processor started, one query
//! asks state which of them no worker has started; those are run.

use std::{sync::Arc, time::Duration};

use job::{
    ByClass, JobLabels, PriorityClass, Usage,
    command::{End, Outcome},
};
use nats::{
    Broker,
    command_publisher::CommandPublisher,
    consumer::{Delivery, Pullers},
    names,
    query::{RunsAnswer, RunsQuery},
    wire::{Item, Work},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{in_flight::InFlightRuns, incarnation::BrokerIncarnation, measurements};

/// How long an answer about waiting runs may take before it is asked for again.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before asking the broker again.
const PAUSE: Duration = Duration::from_millis(200);

/// Judges deliveries.
#[derive(Debug)]
pub(crate) struct AdmissionGuard {
    broker: Broker,
    processor: String,
    outcomes: CommandPublisher,
    in_flight: Arc<InFlightRuns>,
    stop: CancellationToken,
    pullers: Pullers,
    /// What knew of the deliveries when the ends of the streams were last read.
    seen: BrokerIncarnation,
    at_start: ByClass<u64>,
    at_restart: ByClass<u64>,
}

impl AdmissionGuard {
    /// Reads the ends of the streams as they are at the start.
    pub async fn new(
        broker: Broker,
        pullers: Pullers,
        processor: String,
        outcomes: CommandPublisher,
        in_flight: Arc<InFlightRuns>,
        stop: CancellationToken,
    ) -> Self {
        let seen = BrokerIncarnation::current(&broker, &pullers);
        let at_start = ends(&broker, &stop).await;
        let at_restart = ByClass::default();
        Self { broker, pullers, processor, outcomes, in_flight, stop, seen, at_start, at_restart }
    }

    /// The deliveries that may be run; the others are reported and acked.
    pub async fn admit(&mut self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        self.look_for_restart().await;
        let mut runnable = Vec::with_capacity(deliveries.len());
        let mut waiting = Vec::new();
        for delivery in deliveries {
            let class = delivery.priority_class;
            let again =
                self.in_flight.adopt(delivery.work.job, delivery.work.run, delivery.lease());
            if again {
                tracing::info!(job.id = %delivery.work.job, "handed out again what runs here");
            } else if delivery.redelivered || delivery.sequence <= self.at_restart[class] {
                self.report(delivery).await;
            } else if delivery.sequence <= self.at_start[class] {
                waiting.push(delivery);
            } else {
                runnable.push(delivery);
            }
        }
        if !waiting.is_empty() {
            runnable.extend(self.ask_for(waiting).await);
        }
        runnable
    }

    /// Reads the ends of the streams again if the server or a consumer was replaced: deliveries may have
    /// been forgotten.
    async fn look_for_restart(&mut self) {
        // The client knows its server before it hands over anything that came from it.
        loop {
            let now = BrokerIncarnation::current(&self.broker, &self.pullers);
            if self.seen == now {
                return;
            }
            self.seen = now;
            self.at_restart = ends(&self.broker, &self.stop).await;
            tracing::info!(
                ends = ?self.at_restart,
                "deliveries may have been forgotten: older ones are reported and not run"
            );
        }
    }

    /// Asks state which of the runs that waited at the start may be run.
    async fn ask_for(&self, waiting: Vec<Delivery>) -> Vec<Delivery> {
        let runs = waiting.iter().map(|delivery| (delivery.work.job, delivery.work.run)).collect();
        let question = RunsQuery { processor: self.processor.clone(), runs };
        let free: RunsAnswer = loop {
            match self.broker.query(names::QUERY_CLAIM, &question, PATIENCE).await {
                Ok(answer) => break answer,
                Err(error) => {
                    tracing::info!(error = %error, "waiting work is held until state answers")
                }
            }
            for delivery in &waiting {
                delivery.extend().await;
            }
            if self.stop.is_cancelled() {
                // These cannot be decided here: they are redelivered to another processor.
                return Vec::new();
            }
            tokio::time::sleep(PAUSE).await;
        };
        let mut runnable = Vec::new();
        for delivery in waiting {
            if free.runs.contains(&(delivery.work.job, delivery.work.run)) {
                runnable.push(delivery);
            } else {
                self.report(delivery).await;
            }
        }
        runnable
    }

    /// Reports a delivery that must not run, then acks it.
    async fn report(&self, delivery: Delivery) {
        let outcome =
            outcome(&delivery.work, &self.processor, End::Redelivered, delivery.priority_class);
        measurements::redelivered();
        if commit(&self.outcomes, outcome).await.is_ok() {
            delivery.ack().await;
        }
    }
}

/// The outcome of a run that did not start here.
pub(crate) fn outcome(work: &Work, processor: &str, end: End, class: PriorityClass) -> Outcome {
    Outcome {
        job: work.job,
        run: work.run,
        worker: processor.into(),
        labels: JobLabels {
            project: work.project.clone(),
            batch: work.batch.clone(),
            job_type: work.job_type,
            priority_class: class,
            attempt: work.attempt,
            queued_at: work.queued_at,
            trace: None,
        },
        started_at: None,
        finished_at: service::now_ms(),
        usage: Usage::default(),
        end,
        token: work.token,
    }
}

/// Commits an outcome under an id of its own.
pub(crate) async fn commit(
    outcomes: &CommandPublisher,
    outcome: Outcome,
) -> Result<(), nats::command_publisher::Error> {
    let item = Item { id: Uuid::now_v7(), command: outcome };
    let json = serde_json::to_vec(&item).expect("an outcome is JSON");
    outcomes.commit(json).await.map(|_| ())
}

/// The last sequences of the work streams; waits until the broker answers. If `stop` comes first,
/// no run counts as new.
async fn ends(broker: &Broker, stop: &CancellationToken) -> ByClass<u64> {
    let mut ends = ByClass::default();
    for class in PriorityClass::ALL {
        let last = || broker.last_sequence(names::work_stream(class));
        let end = service::retry_until(stop, PAUSE, "end of ready work not read", last).await;
        ends[class] = end.unwrap_or(u64::MAX);
    }
    ends
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use job::{JobId, JobType, Json};
    use nats::{
        names::Verb,
        publish::{Message, Writes},
        topology::{self, Sizes},
        wire,
    };
    use testkit::Nats;

    use super::*;
    use crate::in_flight::Admission;

    const RUNS: usize = 50;

    fn run(n: usize) -> Message {
        let job = JobId::from_u128(n as u128);
        let work = Work {
            job,
            run: 1,
            attempt: 1,
            max_attempts: 3,
            project: "p".into(),
            batch: "b".into(),
            job_type: JobType::ProcessBatch,
            priority: 10,
            queued_at: 1,
            handler: None,
            options: None,
            retention_s: 60,
            data: Json::default(),
            traceparent: None,
            token: None,
        };
        let payload = serde_json::to_vec(&work).expect("it is JSON").into();
        let subject = names::work(PriorityClass::Normal, JobType::ProcessBatch, job, 1);
        Message { subject, headers: HeaderMap::new(), payload }
    }

    async fn claims(broker: &Broker, pullers: &Pullers, name: &str) -> AdmissionGuard {
        let stop = CancellationToken::new();
        let (broker, pullers) = (broker.clone(), pullers.clone());
        let (outcomes, _) =
            CommandPublisher::start(broker.clone(), Verb::Outcome, None, stop.clone());
        AdmissionGuard::new(broker, pullers, name.into(), outcomes, Arc::default(), stop).await
    }

    /// Takes one run, which is there or comes soon.
    async fn take_one(pullers: &Pullers) -> Delivery {
        loop {
            let taken = pullers.take(PriorityClass::Normal, JobType::ProcessBatch, 1).await;
            if let Some(delivery) = taken.unwrap_or_default().pop() {
                return delivery;
            }
        }
    }

    /// Hazard 6: a broker that was killed hands out again, as if for the first time, what runs
    /// already. None of it is run; each is reported once.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_killed_broker_hands_out_again_is_reported_and_not_run() -> anyhow::Result<()> {
        let mut nats = Nats::start()?;
        let broker = Broker::connect(&nats.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let mut claims = claims(&broker, &pullers, "one").await;
        let fence = broker.take_fence(PriorityClass::Normal, 1).await?;
        broker
            .dispatch(PriorityClass::Normal, fence, (0..RUNS).map(run).collect(), Writes::Atomic)
            .await?;
        // One by one: the broker writes down the first deliveries, and the others a moment later.
        let mut first = Vec::new();
        while first.len() < RUNS {
            first.extend(pullers.take(PriorityClass::Normal, JobType::ProcessBatch, 1).await?);
        }
        assert_eq!(claims.admit(first).await.len(), RUNS);
        nats.kill_and_restart()?;
        let mut again = Vec::new();
        while again.len() < RUNS {
            again.extend(
                pullers
                    .take(PriorityClass::Normal, JobType::ProcessBatch, RUNS)
                    .await
                    .unwrap_or_default(),
            );
        }
        let forgotten = again.iter().filter(|delivery| !delivery.redelivered).count();
        assert!(forgotten > 0, "the broker forgot no delivery: nothing is shown");
        assert!(claims.admit(again).await.is_empty());
        let mut reported = 0;
        let commands = broker.js.get_stream(names::COMMANDS).await?;
        for sequence in 1..=broker.last_sequence(names::COMMANDS).await? {
            let message = commands.get_raw_message(sequence).await?;
            let items = wire::commands(sequence, &message.subject, None, &message.payload)?;
            let is_report = |item: &Item<job::command::Command>| matches!(&item.command, job::command::Command::Outcome(word) if word.end == End::Redelivered);
            reported += items.iter().filter(|item| is_report(item)).count();
        }
        assert_eq!(reported, RUNS);
        assert!(broker.list_work(PriorityClass::Normal).await?.is_empty());
        // Messages after the restart are run.
        broker.dispatch(PriorityClass::Normal, fence, vec![run(RUNS)], Writes::Atomic).await?;
        let new = pullers.take(PriorityClass::Normal, JobType::ProcessBatch, 1).await?;
        assert_eq!(claims.admit(new).await.len(), 1);
        Ok(())
    }

    /// Hazard 9: a stop notification is remembered. A run that it names and that arrives later is
    /// not accepted; a later run of the same job is.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_that_was_to_stop_before_it_came_is_not_taken() -> anyhow::Result<()> {
        let nats = Nats::start()?;
        let broker = Broker::connect(&nats.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let fence = broker.take_fence(PriorityClass::Normal, 1).await?;
        let in_flight = InFlightRuns::default();
        in_flight.stop(JobId::from_u128(1), 1);
        broker.dispatch(PriorityClass::Normal, fence, vec![run(1), run(2)], Writes::Atomic).await?;
        let came = pullers.take(PriorityClass::Normal, JobType::ProcessBatch, 2).await?;
        let mut taken = Vec::new();
        for delivery in came {
            let job = delivery.work.job;
            if let Admission::RunInFlight(_) =
                in_flight.take(job, delivery.work.run, delivery.lease())
            {
                taken.push(job);
            }
            let next = in_flight.take(job, 2, delivery.lease());
            assert!(matches!(next, Admission::RunInFlight(_)), "run 2 of {job}: {next:?}");
        }
        assert_eq!(taken, [JobId::from_u128(2)]);
        Ok(())
    }

    /// A deleted consumer is created again, and its redeliveries are reported and not run.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_deleted_consumer_comes_back_and_runs_nothing_twice() -> anyhow::Result<()> {
        let nats = Nats::start()?;
        let broker = Broker::connect(&nats.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let mut claims = claims(&broker, &pullers, "one").await;
        let fence = broker.take_fence(PriorityClass::Normal, 1).await?;
        broker.dispatch(PriorityClass::Normal, fence, vec![run(1)], Writes::Atomic).await?;
        let first = take_one(&pullers).await;
        assert_eq!(claims.admit(vec![first]).await.len(), 1);
        let name = names::work_consumer(JobType::ProcessBatch);
        broker
            .js
            .delete_consumer_from_stream(name, names::work_stream(PriorityClass::Normal))
            .await?;
        let again = take_one(&pullers).await;
        assert!(!again.redelivered, "the new consumer knows of the delivery: nothing is shown");
        assert!(claims.admit(vec![again]).await.is_empty());
        broker.dispatch(PriorityClass::Normal, fence, vec![run(2)], Writes::Atomic).await?;
        let new = take_one(&pullers).await;
        assert_eq!(claims.admit(vec![new]).await.len(), 1);
        Ok(())
    }

    /// Messages older than this processor are not run before state confirms that no worker has
    /// them.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_waited_at_the_start_is_run_only_where_state_says_it_is_free() -> anyhow::Result<()>
    {
        let nats = Nats::start()?;
        let broker = Broker::connect(&nats.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let fence = broker.take_fence(PriorityClass::Normal, 1).await?;
        broker.dispatch(PriorityClass::Normal, fence, vec![run(1), run(2)], Writes::Atomic).await?;
        let mut claims = claims(&broker, &pullers, "late").await;
        let waiting = pullers.take(PriorityClass::Normal, JobType::ProcessBatch, 2).await?;
        let mut questions = broker.client.subscribe(names::QUERY_CLAIM).await?;
        let answering = broker.clone();
        tokio::spawn(async move {
            use futures_util::StreamExt;
            while let Some(question) = questions.next().await {
                let free = RunsAnswer { runs: vec![(JobId::from_u128(2), 1)] };
                let answer = serde_json::to_vec(&free).expect("it is JSON").into();
                let reply = question.reply.expect("a question has one");
                answering.client.publish(reply, answer).await.expect("it is connected");
            }
        });
        let runnable = claims.admit(waiting).await;
        let jobs: Vec<u128> = runnable.iter().map(|run| run.work.job.as_u128()).collect();
        assert_eq!(jobs, [2]);
        Ok(())
    }
}
