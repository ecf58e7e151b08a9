//! Readers of streams: kills of the broker, cut connections, deleted messages, replaced streams.

use std::time::Instant;

use nats::{
    Broker,
    append::Appended,
    names,
    stream_reader::{self, StreamReader},
    topology::{self, Sizes},
};
use testkit::{Nats, Proxy};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, batch, connect};

/// Hazard 1: a follower that has received nothing goes on at its place after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_keeps_its_own_place_over_a_kill_of_the_broker() -> anyhow::Result<()> {
    let mut nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    for last in 0..5 {
        assert_eq!(broker.append(last, 0, batch()).await?, Appended::At(last + 1));
    }
    let stop = CancellationToken::new();
    let mut idle = StreamReader::start(broker.clone(), names::EVENTS, 6, stop.clone());
    let mut busy = StreamReader::start(broker.clone(), names::EVENTS, 1, stop.clone());
    for expected in 1..=5 {
        let message = tokio::time::timeout(PATIENCE, busy.recv()).await??;
        assert_eq!(message.sequence, expected);
    }
    nats.kill_and_restart()?;
    let begun = Instant::now();
    while broker.append(5, 0, batch()).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "no append after the restart");
    }
    for follower in [&mut idle, &mut busy] {
        let message = tokio::time::timeout(PATIENCE, follower.recv()).await??;
        assert_eq!((message.sequence, message.skipped), (6, 0));
    }
    stop.cancel();
    Ok(())
}

/// Hazard 1: what was purged shows as a gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_reports_a_gap() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    for last in 0..5 {
        broker.append(last, 0, batch()).await?;
    }
    broker.js.get_stream(names::EVENTS).await?.purge().sequence(4).await?;
    let mut follower = StreamReader::start(broker, names::EVENTS, 2, CancellationToken::new());
    let message = tokio::time::timeout(PATIENCE, follower.recv()).await??;
    assert_eq!((message.sequence, message.skipped), (4, 2));
    Ok(())
}

/// Hazard 22: messages that were in flight on a lost connection are read again. The consumer at the
/// broker survives the connection and continues behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_misses_nothing_when_its_connection_is_cut() -> anyhow::Result<()> {
    const MESSAGES: u64 = 3_000;
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let proxy = Proxy::start(nats.address()).await?;
    let through_proxy = Broker::connect(&proxy.url(), "reader").await?;
    let stop = CancellationToken::new();
    let mut reader = StreamReader::start(through_proxy, names::EVENTS, 1, stop.clone());
    let publishing = tokio::spawn(async move {
        for last in 0..MESSAGES {
            broker.append(last, 0, batch()).await?;
        }
        anyhow::Ok(())
    });
    for expected in 1..=MESSAGES {
        let message = tokio::time::timeout(PATIENCE, reader.recv()).await??;
        assert_eq!((message.sequence, message.skipped), (expected, 0));
        if expected % 50 == 0 {
            proxy.cut();
        }
    }
    publishing.await??;
    stop.cancel();
    Ok(())
}

/// Hazard 22: a message that was deleted by hand is no reason to wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_skips_a_deleted_message_and_says_so() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    for last in 0..5 {
        broker.append(last, 0, batch()).await?;
    }
    let stream = broker.js.get_stream(names::EVENTS).await?;
    stream.delete_message(2).await?;
    stream.delete_message(3).await?;
    let mut reader = StreamReader::start(broker, names::EVENTS, 1, CancellationToken::new());
    for (sequence, skipped) in [(1, 0), (4, 2), (5, 0)] {
        let message = tokio::time::timeout(PATIENCE, reader.recv()).await??;
        assert_eq!((message.sequence, message.skipped), (sequence, skipped));
    }
    Ok(())
}

/// A stream that was replaced while it was read holds other messages under the same sequences.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_ends_when_its_stream_was_replaced() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let mut reader =
        StreamReader::start(broker.clone(), names::EVENTS, 1, CancellationToken::new());
    for last in 0..3 {
        broker.append(last, 0, batch()).await?;
        tokio::time::timeout(PATIENCE, reader.recv()).await??;
    }
    broker.js.delete_stream(names::EVENTS).await?;
    topology::ensure(&broker, Sizes::default()).await?;
    for last in 0..5 {
        broker.append(last, 0, batch()).await?;
    }
    let ended = tokio::time::timeout(PATIENCE, reader.recv()).await?;
    let rewound = stream_reader::Error::Rewound { stream: names::EVENTS, read: 3 };
    assert_eq!(
        ended.map(|message| message.sequence).map_err(|e| e.to_string()),
        Err(rewound.to_string())
    );
    Ok(())
}
