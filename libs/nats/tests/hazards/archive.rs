//! Copies of streams, as backups use them.

use async_nats::jetstream::kv;
use job::State;
use nats::{
    Broker, names,
    snapshot::SnapshotWatermark,
    topology::{self, Sizes},
};
use testkit::{Cluster, Nats};

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_stream_has_the_same_sequences_without_what_was_deleted() -> anyhow::Result<()> {
    let (from, to) = (Nats::start()?, Nats::start()?);
    let broker = Broker::connect(&from.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    let publish = async |count: usize| {
        for n in 0..count {
            let subject = names::Verb::Enqueue.subject();
            // More than fits into one message of the copy.
            broker
                .js
                .publish(subject, vec![u8::try_from(n % 250).unwrap(); 30_000].into())
                .await?
                .await?;
        }
        anyhow::Ok(())
    };
    publish(40).await?;
    broker.js.get_stream_no_info(names::COMMANDS).await?.purge().sequence(11).await?;
    let mut file = Vec::new();
    let copied = broker.export_stream(names::COMMANDS, &mut file).await?;
    assert_eq!(copied.bounds(), (11, 40));
    publish(1).await?;

    let other = Broker::connect(&to.url(), "test").await?;
    let both = [names::COMMANDS, names::EVENTS].map(str::to_owned);
    assert_eq!(other.existing(&both).await?, Vec::<&str>::new());
    other.import_stream(names::COMMANDS, &copied, 1, &mut file.as_slice()).await?;
    assert_eq!(other.existing(&both).await?, [names::COMMANDS]);
    topology::ensure(&other, Sizes::default()).await?;
    assert_eq!(other.bounds(names::COMMANDS).await?, (11, 40));
    let stream = other.js.get_stream(names::COMMANDS).await?;
    let last = stream.get_raw_message(40).await?;
    assert!(last.payload.len() == 30_000 && last.payload[0] == 39, "message 40");
    // Sequences that a restore leaves out are not used again.
    stream.purge().sequence(61).await?;
    assert_eq!(other.bounds(names::COMMANDS).await?, (61, 60));
    let twice = other.import_stream(names::COMMANDS, &copied, 1, &mut file.as_slice()).await;
    assert!(twice.is_err_and(|error| error.to_string().contains("COMMANDS")), "it exists");
    let cut = &file[..file.len() / 2];
    other.js.delete_stream(names::COMMANDS).await?;
    assert!(other.import_stream(names::COMMANDS, &copied, 1, &mut &cut[..]).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_a_bucket_are_restored_as_they_were() -> anyhow::Result<()> {
    let (from, to) = (Nats::start()?, Nats::start()?);
    let broker = Broker::connect(&from.url(), "test").await?;
    let other = Broker::connect(&to.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    let mut file = Vec::new();
    assert_eq!(broker.export_snapshot(&mut file).await?, None);
    for events in [3, 7] {
        let reach = SnapshotWatermark { events, commands: events + 1 };
        let text = format!("state at {events}\n");
        broker.put_snapshot(reach, move |to| to.write_all(text.as_bytes())).await?;
    }
    let reach = broker.export_snapshot(&mut file).await?.expect("there are two");
    assert_eq!(reach, SnapshotWatermark { events: 7, commands: 8 });
    let keys: kv::Store = broker.js.get_key_value(names::KEYS).await?;
    for value in ["a", "b"] {
        keys.put("key", value.into()).await?;
    }
    let mut copy = Vec::new();
    let copied = broker.export_stream(names::KEYS_STREAM, &mut copy).await?;

    other.import_stream(names::KEYS_STREAM, &copied, 1, &mut copy.as_slice()).await?;
    topology::ensure(&other, Sizes::default()).await?;
    other.import_snapshot(reach, &mut file.as_slice()).await?;
    let read = |from: &mut dyn std::io::BufRead| {
        let mut text = String::new();
        from.read_to_string(&mut text).map(|_| text)
    };
    assert_eq!(other.get_snapshot(read).await?.as_deref(), Some("state at 7\n"));
    let entry =
        other.js.get_key_value(names::KEYS).await?.entry("key").await?.expect("it is there");
    assert_eq!((entry.value.as_ref(), entry.revision), (&b"b"[..], 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_a_newer_program_are_reported_as_such() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    let reach = SnapshotWatermark { events: 1, commands: 1 };
    broker.put_snapshot(reach, |to| to.write_all(b"{\"required_version\":99}\n")).await?;
    let read = |from: &mut dyn std::io::BufRead| State::new(1).restore(from);
    let error = broker.get_snapshot(read).await.expect_err("it is newer");
    assert!(error.is_for_newer() && error.to_string().contains("version 99"), "{error}");
    let torn = SnapshotWatermark { events: 2, commands: 1 };
    broker.put_snapshot(torn, |to| to.write_all(b"{")).await?;
    assert!(broker.get_snapshot(read).await.expect_err("neither is whole").is_for_newer());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_single_server_are_restored_into_a_cluster() -> anyhow::Result<()> {
    let single = Nats::start()?;
    let broker = Broker::connect(&single.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    let mut file = Vec::new();
    for n in 1..=3_u64 {
        broker.js.publish(names::Verb::Enqueue.subject(), "[]".into()).await?.await?;
        let keys = broker.js.get_key_value(names::KEYS).await?;
        keys.put(format!("k{n}"), "v".into()).await?;
    }
    let commands = broker.export_stream(names::COMMANDS, &mut file).await?;
    let mut keys_file = Vec::new();
    let keys = broker.export_stream(names::KEYS_STREAM, &mut keys_file).await?;

    let cluster = Cluster::start(3).await?;
    let broker = Broker::connect(&format!("nats://{}", cluster.address(0)), "test").await?;
    broker.import_stream(names::COMMANDS, &commands, 3, &mut file.as_slice()).await?;
    broker.import_stream(names::KEYS_STREAM, &keys, 3, &mut keys_file.as_slice()).await?;
    topology::ensure(&broker, Sizes::default()).await?;
    assert_eq!(broker.bounds(names::COMMANDS).await?, (1, 3));
    let stream = broker.js.get_stream(names::COMMANDS).await?;
    assert_eq!(stream.cached_info().config.num_replicas, 3);
    let key = broker.js.get_key_value(names::KEYS).await?.get("k3").await?;
    assert_eq!(key.as_deref(), Some(&b"v"[..]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_service_uses_an_account_while_a_restore_is_incomplete() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    broker.mark_restore(1).await?;
    topology::make_all(&broker, Sizes::default()).await?;
    let state = topology::ensure(&broker, Sizes::default()).await;
    assert!(matches!(state, Err(topology::Error::Restoring)), "{state:?}");
    let others = topology::check_all(&broker, Sizes::default()).await;
    assert!(matches!(others, Err(topology::Error::Restoring)), "{others:?}");
    broker.unmark_restore().await?;
    topology::ensure(&broker, Sizes::default()).await?;
    topology::check_all(&broker, Sizes::default()).await?;
    Ok(())
}
