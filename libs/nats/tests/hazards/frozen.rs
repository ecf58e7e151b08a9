//! Writes while a stream has no quorum, and afterwards.

use std::{process::Command, time::Duration};

use job::Position;
use nats::{
    Broker,
    bucket::Write,
    publish::Writes,
    topology::{self, Sizes},
    wire::ProjectionWatermark,
};
use testkit::Cluster;

/// For how long two servers are frozen: several attempts of a write, and less than an election takes.
const FROZEN_FOR: Duration = Duration::from_millis(1_500);

fn send(id: u32, signal: &str) -> anyhow::Result<()> {
    let sent = Command::new("kill").args([signal, &id.to_string()]).status()?;
    anyhow::ensure!(sent.success(), "{signal} to {id}: {sent}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_the_bucket_survives_a_quorum_that_is_away_for_a_moment() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let broker = Broker::connect(&format!("nats://{}", cluster.address(0)), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    cluster.lead_with(0).await?;
    let through = |sequence| ProjectionWatermark { position: Position::new(sequence, 0), term: 1 };
    let key = || Write { key: "a".to_owned(), value: "1".into(), ttl: None };
    let fence = broker.read_fence().await?;
    let fence = broker.write_bucket(fence, through(1), vec![key()], Writes::Atomic).await?;
    for node in [1, 2] {
        send(cluster.id(node), "-STOP")?;
    }
    let mut write = Box::pin(broker.write_bucket(fence, through(2), vec![key()], Writes::Atomic));
    // The broker refuses the repeats, because the first attempt may still be stored.
    let early = tokio::time::timeout(FROZEN_FOR, &mut write).await;
    for node in [1, 2] {
        send(cluster.id(node), "-CONT")?;
    }
    assert!(early.is_err(), "the write ended without a quorum: {early:?}");
    let fence = write.await?;
    let found = broker.read_fence().await?;
    assert_eq!((found.revision, found.through), (fence.revision, through(2)));
    Ok(())
}
