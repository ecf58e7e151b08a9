//! Many processors wait for work at the same time.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{PullConsumer, pull};
use futures_util::StreamExt;
use job::{JobType, PriorityClass};
use nats::{
    Broker,
    consumer::Pullers,
    names,
    topology::{self, Sizes},
};
use testkit::Nats;

use super::PATIENCE;

/// NATS's own bound is 512.
const PROCESSORS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_processors_wait_at_once_and_each_is_served() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
    let class = PriorityClass::High;
    let stream = broker.js.get_stream(names::work_stream(class)).await?;
    let name = names::work_consumer(JobType::ProcessBatch);
    let mut consumer: PullConsumer =
        stream.get_consumer(name).await.map_err(anyhow::Error::from_boxed)?;
    let mut processors = tokio::task::JoinSet::new();
    for _ in 0..PROCESSORS {
        let consumer = consumer.clone();
        processors.spawn(async move {
            let batch = consumer.batch().max_messages(1).expires(Duration::from_secs(60));
            let mut messages = batch.messages().await.ok()?;
            messages.next().await?.ok()
        });
    }
    let begun = Instant::now();
    while consumer.info().await?.num_waiting < PROCESSORS {
        let waiting = consumer.cached_info().num_waiting;
        anyhow::ensure!(begun.elapsed() < PATIENCE, "only {waiting} of {PROCESSORS} may wait");
    }
    for n in 0..PROCESSORS {
        let subject =
            names::work_filter(class, JobType::ProcessBatch).replace("*.*", &format!("{n}.1"));
        broker.js.publish(subject, "".into()).await?.await?;
    }
    let served = processors.join_all().await.into_iter().flatten().count();
    assert_eq!(served, PROCESSORS);
    Ok(())
}

/// A consumer of an earlier version, whose bound cannot be changed, is used as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_with_a_lower_bound_is_used_as_it_is() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    let job_types = vec![JobType::ProcessBatch];
    Pullers::ensure(&broker, job_types.clone()).await?;
    let stream = broker.js.get_stream(names::work_stream(PriorityClass::High)).await?;
    let name = names::work_consumer(JobType::ProcessBatch);
    let consumer: PullConsumer =
        stream.get_consumer(name).await.map_err(anyhow::Error::from_boxed)?;
    let made = consumer.cached_info().config.clone();
    stream.delete_consumer(name).await?;
    let config = pull::Config {
        durable_name: made.durable_name,
        ack_policy: made.ack_policy,
        ack_wait: made.ack_wait,
        filter_subject: made.filter_subject,
        max_ack_pending: made.max_ack_pending,
        max_deliver: made.max_deliver,
        ..Default::default()
    };
    stream.create_consumer(config).await?;
    Pullers::ensure(&broker, job_types).await?;
    Ok(())
}
