//! Streams that exist get the size and the replicas that are set.

use nats::{
    Broker, names,
    topology::{self, Error, Sizes},
};
use testkit::{Cluster, Nats};

async fn max_bytes(broker: &Broker) -> anyhow::Result<i64> {
    Ok(broker.js.get_stream(names::COMMANDS).await?.cached_info().config.max_bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_exists_gets_the_size_that_is_set() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    let set = |bytes| Sizes { commands_bytes: Some(bytes), ..Sizes::default() };
    topology::ensure(&broker, set(1 << 20)).await?;
    topology::ensure(&broker, set(2 << 20)).await?;
    assert_eq!(max_bytes(&broker).await?, 2 << 20);
    topology::ensure(&broker, Sizes::default()).await?;
    assert_eq!(max_bytes(&broker).await?, 2 << 20, "what is not set stays");
    broker.js.publish(names::Verb::Enqueue.subject(), vec![0; 10_000].into()).await?.await?;
    topology::ensure(&broker, set(1_000)).await?;
    assert_eq!(max_bytes(&broker).await?, 2 << 20, "a stream that holds more keeps its size");
    assert_eq!(broker.spare_servers().await, Some(0));
    let three = Sizes { replicas: Some(3), ..Sizes::default() };
    let error = topology::ensure(&broker, three).await.expect_err("there is one server");
    assert!(matches!(error, Error::Replicas { replicas: 3, .. }), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_three_copies_also_of_what_had_one() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let broker = Broker::connect(&format!("nats://{}", cluster.address(0)), "test").await?;
    topology::ensure(&broker, Sizes { replicas: Some(1), ..Sizes::default() }).await?;
    assert_eq!(broker.spare_servers().await, Some(0));
    topology::ensure(&broker, Sizes::default()).await?;
    let until_spare = async |spare| {
        let begun = std::time::Instant::now();
        loop {
            let found = broker.spare_servers().await;
            if found == Some(spare) {
                return anyhow::Ok(());
            }
            anyhow::ensure!(begun.elapsed().as_secs() < 60, "{found:?} spare servers, not {spare}");
        }
    };
    until_spare(1).await?;
    // One with more copies than asked for keeps them.
    topology::ensure(&broker, Sizes { replicas: Some(1), ..Sizes::default() }).await?;
    until_spare(1).await?;
    cluster.kill(2)?;
    until_spare(0).await?;
    cluster.restart(2)?;
    until_spare(1).await
}
