//! Readers of streams: kills of the broker, cut connections, deleted messages, replaced streams.

use std::time::Instant;

use job::{JobId, Position};
use nats::{
    Broker,
    append::Appended,
    names,
    stream_reader::{self, StreamReader},
    topology::{self, Sizes},
};
use serde_json::json;
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

/// Many jobs are read with one request, without absent, deleted and unreadable ones.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_read_together_without_what_is_absent_deleted_or_unreadable() -> anyhow::Result<()>
{
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let store = broker.js.get_key_value(names::JOBS).await?;
    let job = |id: u128| {
        json!({
            "id": JobId::from_u128(id), "project": "p", "batch": "b", "type": "process_batch",
            "priority": 10, "class": "normal", "data": { "n": 1 }, "status": "failed", "run": 1,
            "attempts": 1, "maxAttempts": 1, "createdAt": 1, "queuedAt": 1,
            "order": Position::new(1, 0), "version": Position::new(2, 0),
        })
    };
    // More than one request takes.
    let ids: Vec<JobId> = (0..1_500).map(JobId::from_u128).collect();
    let present = [0, 700, 1_499];
    for id in present {
        store.put(ids[id].to_string(), job(id as u128).to_string().into()).await?;
    }
    store.put(ids[5].to_string(), "not JSON".into()).await?;
    store.put(ids[6].to_string(), job(6).to_string().into()).await?;
    store.purge(ids[6].to_string()).await?;
    let read = broker.read_jobs(&ids).await?;
    assert_eq!(read.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    let found: Vec<JobId> = read.into_iter().filter_map(|(_, job)| Some(job?.id)).collect();
    assert_eq!(found, present.map(|id| ids[id]));
    let twice = broker.read_jobs(&[ids[0], ids[0]]).await?;
    assert!(twice.len() == 2 && twice.iter().all(|(_, job)| job.is_some()));
    // What is too large for one answer is left out, and read with the next.
    let mut large = job(0);
    large["data"] = json!({ "text": "x".repeat(3 << 20) });
    let mut rest: Vec<JobId> = ids[200..204].to_vec();
    for id in &rest {
        large["id"] = json!(id);
        store.put(id.to_string(), large.to_string().into()).await?;
    }
    let mut reads = 0;
    while !rest.is_empty() {
        let read = broker.read_jobs(&rest).await?;
        assert!(!read.is_empty() && read.iter().all(|(_, job)| job.is_some()));
        rest.retain(|id| read.iter().all(|(found, _)| found != id));
        reads += 1;
    }
    assert_eq!(reads, 2);
    assert!(broker.read_jobs(&ids[100..200]).await?.iter().all(|(_, job)| job.is_none()));
    Ok(())
}
