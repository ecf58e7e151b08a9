//! The rules that experiments with the broker forced, each with a test that fails without it.
//! The numbers are those of the list of hazards in docs/decisions/0001-hazards.md.

mod archive;
mod frozen;
mod readers;
mod servers;
mod sizes;
mod waiting;

use std::time::{Duration, Instant};

use async_nats::{HeaderMap, jetstream::stream};
use job::{JobType, Position, PriorityClass, event::Event};
use nats::{
    Broker,
    append::Appended,
    bucket::Write,
    lease::Lease,
    names,
    publish::{LIMITS, Message, WRONG_LAST_SEQUENCE, Writes},
    snapshot::SnapshotWatermark,
    topology::{self, Sizes},
    wire::ProjectionWatermark,
    work_queue::{self, WorkFence},
};
use testkit::{Nats, Proxy};

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(url: &str) -> anyhow::Result<Broker> {
    let broker = Broker::connect(url, "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    Ok(broker)
}

/// A batch of events that says nothing but that it is there.
fn batch() -> bytes::Bytes {
    let led = Event::LeaderElected { term: 1, leader: "test".into() };
    let event = serde_json::to_string(&led).expect("an event is JSON");
    format!(r#"{{"at":1,"commands":[],"events":[{event}]}}"#).into()
}

fn run_of(job: u128, class: PriorityClass) -> Message {
    let id = job::JobId::from_u128(job);
    let subject = names::work(class, JobType::ProcessBatch, id, 1);
    Message { subject, headers: HeaderMap::new(), payload: "{}".into() }
}

/// Hazards 4 and 16: a stale writer of the bucket changes nothing, however it writes; a value
/// goes when its time is over, unless a later one came without.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_write_of_the_bucket_changes_nothing_and_ttl_is_kept() -> anyhow::Result<()> {
    for how in [Writes::Atomic, Writes::Pipelined] {
        a_stale_write_changes_nothing(how).await?;
    }
    Ok(())
}

async fn a_stale_write_changes_nothing(how: Writes) -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let through = |sequence| ProjectionWatermark { position: Position::new(sequence, 0), term: 1 };
    let first = broker.read_fence().await?;
    let stale = broker.write_bucket(first, through(1), vec![key("a", "1", None)], how).await?;
    let writes = vec![key("gone", "1", Some(1)), key("kept", "1", Some(1)), key("a", "new", None)];
    let fence = broker.write_bucket(stale, through(2), writes, how).await?;
    let read = broker.read_fence().await?;
    assert_eq!((read.revision, read.through), (fence.revision, through(2)));
    // As many keys as the other wrote, fewer, and more: no number makes a stale write fit.
    for (old, keys) in [(first, 2), (stale, 1), (stale, 2), (stale, 3), (stale, 4), (stale, 5)] {
        let writes = ["a", "b", "c", "d", "e"][..keys].iter().map(|name| key(name, "old", None));
        let refused = broker.write_bucket(old, through(9), writes.collect(), how).await;
        assert!(refused.is_err_and(|error| error.is(WRONG_LAST_SEQUENCE)), "{how:?} {keys}");
        assert_eq!(broker.read_fence().await?.through, through(2), "{how:?} {keys}");
    }
    let fence = broker.write_bucket(fence, through(3), vec![key("kept", "2", None)], how).await?;
    assert_eq!(broker.read_fence().await?.revision, fence.revision);
    let jobs = broker.js.get_key_value(names::JOBS).await?;
    assert_eq!(jobs.get("a").await?.as_deref(), Some(b"new".as_slice()));
    assert_eq!(jobs.get("b").await?, None);
    let begun = Instant::now();
    while jobs.get("gone").await?.is_some() {
        assert!(begun.elapsed() < PATIENCE, "a value outlives its time");
    }
    assert_eq!(jobs.get("kept").await?.as_deref(), Some(b"2".as_slice()));
    // What leaves the bucket by its time does not stop who writes it.
    broker.write_bucket(fence, through(4), vec![key("a", "last", None)], how).await?;
    Ok(())
}

fn key(name: &str, value: &str, ttl: Option<u64>) -> Write {
    let ttl = ttl.map(Duration::from_secs);
    Write { key: name.into(), value: value.to_owned().into(), ttl }
}

/// A pipelined write of which the broker accepts a part reports that, and claims nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipelined_write_that_is_taken_in_part_moves_no_fence() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes { jobs_bytes: Some(100_000), ..Sizes::default() }).await?;
    let through = |sequence| ProjectionWatermark { position: Position::new(sequence, 0), term: 1 };
    let first = broker.read_fence().await?;
    let how = Writes::Pipelined;
    let fence = broker.write_bucket(first, through(1), vec![key("a", "1", None)], how).await?;
    let large = "x".repeat(200_000);
    let writes = vec![key("small", "1", None), key("large", &large, None), key("a", "2", None)];
    let full = broker.write_bucket(fence, through(2), writes, how).await;
    assert!(full.is_err_and(|error| error.is(LIMITS)));
    assert_eq!(broker.read_fence().await?.through, through(1));
    let fence = broker.read_fence().await?;
    broker.write_bucket(fence, through(2), vec![key("a", "3", None)], how).await?;
    Ok(())
}

/// Makes the stream of a class again as a cluster has it: each message on disk before its ack.
async fn sync_before_ack(broker: &Broker, class: PriorityClass) -> anyhow::Result<()> {
    let name = names::work_stream(class);
    let config = broker.js.get_stream(name).await?.cached_info().config.clone();
    broker.js.delete_stream(name).await?;
    let config = stream::Config { persist_mode: None, allow_atomic_publish: true, ..config };
    broker.js.create_stream(config).await?;
    // Which is as good as what Jobmesh makes.
    Ok(topology::ensure(broker, Sizes::default()).await?)
}

const NO_FENCE: WorkFence = WorkFence { sequence: 1, acks_before_sync: false };

/// Hazards 5 and 10: dispatch goes behind a fence, all or nothing, and a missing fence is closed.
#[tokio::test(flavor = "multi_thread")]
async fn dispatch_is_fenced_and_refused_whole_where_a_run_is_there() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let (class, how) = (PriorityClass::Normal, Writes::Atomic);
    sync_before_ack(&broker, class).await?;
    let closed = broker.dispatch(class, NO_FENCE, vec![run_of(1, class)], how).await;
    assert!(closed.is_err_and(|error| error.is(WRONG_LAST_SEQUENCE)), "no fence must be closed");
    let old = broker.take_fence(class, 1).await?;
    assert!(!old.acks_before_sync);
    broker.dispatch(class, old, vec![run_of(1, class), run_of(2, class)], how).await?;
    let twice = broker.dispatch(class, old, vec![run_of(3, class), run_of(2, class)], how).await;
    assert!(twice.is_err_and(|error| error.is(LIMITS)));
    let alone = broker.dispatch(class, old, vec![run_of(1, class)], how).await;
    assert!(alone.is_err_and(|error| error.is(LIMITS)));
    let new = broker.take_fence(class, 2).await?;
    let stale = broker.dispatch(class, old, vec![run_of(4, class), run_of(5, class)], how).await;
    assert!(stale.is_err_and(|error| error.is(WRONG_LAST_SEQUENCE)));
    broker.dispatch(class, new, vec![run_of(6, class)], how).await?;
    assert_eq!(listed(&broker, class).await?, [1, 2, 6], "nothing came in part");
    Ok(())
}

/// Where the broker acks before it syncs, each run counts for itself: the fence and what is there count
/// as much, and the sequence tells what was left out.
#[tokio::test(flavor = "multi_thread")]
async fn dispatch_without_atomic_batches_is_fenced_and_tells_what_was_left_out()
-> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    // The stream decides: the broker refuses atomic batches there.
    let (class, how) = (PriorityClass::Normal, Writes::Atomic);
    let closed = broker.dispatch(class, NO_FENCE, vec![run_of(1, class)], how).await;
    assert!(closed.is_err_and(|error| error.is(WRONG_LAST_SEQUENCE)), "no fence must be closed");
    let old = broker.take_fence(class, 1).await?;
    assert!(old.acks_before_sync);
    let ack = broker.dispatch(class, old, vec![run_of(1, class), run_of(2, class)], how).await?;
    assert_eq!(ack.sequence, old.sequence + 2);
    let runs = vec![run_of(3, class), run_of(2, class), run_of(4, class)];
    let ack = broker.dispatch(class, old, runs, how).await?;
    assert_eq!(ack.sequence, old.sequence + 4, "one of three was there");
    let alone = broker.dispatch(class, old, vec![run_of(1, class)], how).await;
    assert!(alone.is_err_and(|error| error.is(LIMITS)));
    let new = broker.take_fence(class, 2).await?;
    for runs in [vec![run_of(5, class)], vec![run_of(5, class), run_of(6, class)]] {
        let stale = broker.dispatch(class, old, runs, how).await;
        assert!(stale.is_err_and(|error| error.is(WRONG_LAST_SEQUENCE)));
    }
    broker.dispatch(class, new, vec![run_of(7, class)], how).await?;
    assert_eq!(listed(&broker, class).await?, [1, 2, 3, 4, 7]);
    Ok(())
}

/// The numbers of the jobs whose runs are in the stream of a class. The fence is no run.
async fn listed(broker: &Broker, class: PriorityClass) -> anyhow::Result<Vec<u128>> {
    let listed = broker.list_work(class).await?;
    let mut jobs: Vec<u128> = listed.into_iter().map(|(job, _)| job.as_u128()).collect();
    jobs.sort_unstable();
    Ok(jobs)
}

/// Hazard 8: an append whose ack was lost is recognized; another leader's append is not mistaken
/// for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_acked_into_the_void_is_found_and_another_leaders_is_not_taken_for_it()
-> anyhow::Result<()> {
    let nats = Nats::start()?;
    let proxy = Proxy::start(nats.address()).await?;
    let direct = connect(&nats.url()).await?;
    let broker = Broker::connect(&proxy.url(), "behind the proxy").await?;
    assert_eq!(broker.append(0, 0, batch()).await?, Appended::At(1));
    proxy.swallow_answers();
    let (appended, ()) = tokio::join!(broker.append(1, 0, batch()), async {
        let begun = Instant::now();
        while direct.last_sequence(names::EVENTS).await.unwrap_or(0) < 2 {
            assert!(begun.elapsed() < PATIENCE, "the append never came");
        }
        proxy.cut();
    });
    assert_eq!(appended?, Appended::At(2));
    assert_eq!(direct.append(1, 0, batch()).await?, Appended::Stale);
    assert_eq!(direct.append(2, 0, batch()).await?, Appended::At(3));
    assert_eq!(broker.append(2, 0, batch()).await?, Appended::Stale);
    Ok(())
}

/// Hazard 7: a stream that would throw work away is reported, not used.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_other_settings_is_reported() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    let config = stream::Config {
        name: names::COMMANDS.into(),
        subjects: vec![names::COMMAND_SUBJECTS.into()],
        discard: stream::DiscardPolicy::Old,
        ..Default::default()
    };
    broker.js.create_stream(config).await?;
    let error = topology::ensure(&broker, Sizes::default()).await.expect_err("it must be reported");
    let text = error.to_string();
    assert!(text.contains("COMMANDS") && text.contains("discard"), "{text}");
    // Streams of another wire version are refused, too.
    broker.js.delete_stream(names::COMMANDS).await?;
    topology::ensure(&broker, Sizes::default()).await?;
    let mut config = broker.js.get_stream(names::COMMANDS).await?.cached_info().config.clone();
    config.metadata.insert("jobmesh-wire".to_owned(), "1".to_owned());
    broker.js.update_stream(config).await?;
    let error = topology::ensure(&broker, Sizes::default()).await.expect_err("it is refused");
    let text = error.to_string();
    assert!(text.contains("COMMANDS") && text.contains("wire version 1"), "{text}");
    Ok(())
}

/// Hazard 7: a full stream refuses what comes, and keeps what it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_and_keeps_what_it_has() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    let sizes = Sizes { commands_bytes: Some(10_000), ..Sizes::default() };
    topology::ensure(&broker, sizes).await?;
    let mut stored = 0;
    let error = loop {
        let message = Message {
            subject: names::Verb::Enqueue.subject(),
            headers: HeaderMap::new(),
            payload: "x".repeat(900).into(),
        };
        match broker.publish(message).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "the stream never fills");
    };
    assert!(matches!(error, nats::publish::Error::Refused { .. }), "{error}");
    let info = broker.js.get_stream(names::COMMANDS).await?.cached_info().clone();
    assert_eq!((info.state.messages, info.state.first_sequence), (stored, 1));
    Ok(())
}

/// Two snapshots are kept, and a broken one is passed over for the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_snapshot_is_passed_over_for_the_one_before() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let read = |from: &mut dyn std::io::BufRead| {
        let mut text = String::new();
        from.read_line(&mut text).map(|_| text)
    };
    assert_eq!(broker.get_snapshot(read).await?, None);
    let long = "x".repeat(1_000_000);
    for sequence in [5, 90, 100] {
        let reach = SnapshotWatermark { events: sequence, commands: 7 };
        let line = format!("state {sequence} {long}\n");
        broker.put_snapshot(reach, move |to| to.write_all(line.as_bytes())).await?;
    }
    let state = async |events: u64| {
        let found = broker.get_snapshot(read).await?;
        anyhow::ensure!(found.is_some_and(|text| text == format!("state {events} {long}\n")));
        anyhow::Ok(())
    };
    state(100).await?;
    let reaches = broker.snapshot_reaches().await?;
    assert_eq!(reaches.iter().map(|reach| reach.events).collect::<Vec<_>>(), [90, 100]);
    // One that could not be written is not there, and costs none of the others.
    let failing = broker.put_snapshot(SnapshotWatermark { events: 101, commands: 7 }, |to| {
        to.write_all(b"half")?;
        Err(std::io::Error::other("no more"))
    });
    assert!(failing.await.is_err_and(|error| error.to_string().contains("no more")));
    state(100).await?;
    let store = broker.js.get_object_store(names::SNAPSHOTS).await?;
    store
        .put("state-00000000000000000100-00000000000000000007", &mut b"cut short".as_slice())
        .await?;
    state(90).await
}

/// Hazard 14: the holder of a lease learns how far its clock is off the broker's.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_the_brokers_is_found_out() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats.url()).await?;
    let now_ms = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_millis() as i64
    };
    let mut lease = Lease::open(&broker, names::STATE_LEASE, "one").await?;
    assert_eq!(lease.clock_skew_ms(now_ms).await?, Some(0));
    let behind = lease.clock_skew_ms(|| now_ms() - 5_000).await?;
    assert!(behind.is_some_and(|skew| (4_000..=5_000).contains(&skew)), "{behind:?}");
    let ahead = lease.clock_skew_ms(|| now_ms() + 5_000).await?;
    assert!(ahead.is_some_and(|skew| (-5_001..=-4_000).contains(&skew)), "{ahead:?}");
    let mut other = Lease::open(&broker, names::STATE_LEASE, "two").await?;
    assert_eq!(other.clock_skew_ms(now_ms).await?, None, "another holds it");
    Ok(())
}

/// The message that hands out a run carries the id that makes a repeat harmless.
#[test]
fn a_dispatch_carries_the_id_of_its_run() {
    let enqueued = job::event::Enqueued {
        job: job::JobId::from_u128(7),
        project: "p".into(),
        batch: "b".into(),
        job_type: JobType::ProcessRedo,
        priority: 3,
        priority_class: PriorityClass::High,
        max_attempts: 3,
        own_attempts: false,
        retry: None,
        run_at: None,
        expires_at: None,
        data: job::Json::default(),
        trace: None,
    };
    let mut job = enqueued.job(1, Position::default());
    job.run = 4;
    let message = work_queue::message(&job, job::Digest([0; 16]), 3, 60, &job::Settings::default());
    let id = message.headers.get("Nats-Msg-Id").map(ToString::to_string);
    assert_eq!(id, Some(format!("{}.4", job.id)));
    assert!(message.subject.ends_with(".4"));
}
