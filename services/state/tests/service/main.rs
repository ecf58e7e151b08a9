//! The state service alone, against a real NATS; the test is edge and processor.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod fixture;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use job::{
    Job, JobId, JobType, Json, PriorityClass, Status,
    command::{Cancel, Started},
    event::{self, Event},
    reply::{Code, Reply},
    schedule::{IfLive, Schedule, ScheduleState},
};
use nats::{
    Broker,
    append::Appended,
    names::{self, Verb},
    topology::{self, Sizes},
    wire::{self, Stop},
};
use testkit::Nats;

use fixture::*;

/// Hazard 12: a command that was stored after its sender gave up is not carried out.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_comes_after_its_deadline_is_refused() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let service = Service::start(&nats.url());
    let late = request(&broker, Verb::Enqueue, one(1), service::now_ms() - 1).await?;
    assert!(matches!(late, Reply::Refused { code: Code::Expired, .. }), "{late:?}");
    assert_eq!(look_up(&broker, 1).await?, None);
    let in_time = request(&broker, Verb::Enqueue, one(2), in_a_while()).await?;
    assert_eq!(in_time, Reply::Enqueued { canceled: 0 });
    assert_eq!(look_up(&broker, 2).await?.map(|job| job.status), Some(Status::Queued));
    service.stop().await
}

/// Hazard 9: processors are notified of canceled runs that have not started, and a processor that
/// starts one nevertheless is notified again.
#[tokio::test(flavor = "multi_thread")]
async fn canceled_work_in_a_stream_is_hinted_at_and_again_when_it_is_begun() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let service = Service::start(&nats.url());
    let mut hints = broker.client.subscribe(names::CONTROL_CANCEL).await?;
    broker.client.flush().await?;
    request(&broker, Verb::Enqueue, one(1), in_a_while()).await?;
    until_dispatched(&broker).await?;
    let cancel = Cancel { project: "p".into(), batches: None, idempotency: None };
    let canceled = request(&broker, Verb::Cancel, cancel, in_a_while()).await?;
    assert_eq!(canceled, Reply::Canceled { jobs: 1, batches: 1 });
    let job = JobId::from_u128(1);
    let hint = tokio::time::timeout(PATIENCE, hints.next()).await?.unwrap();
    assert_eq!(serde_json::from_slice::<Stop>(&hint.payload)?.runs, [(job, 1)]);
    let (worker, at) = ("tester".into(), service::now_ms());
    let started = Started { job, run: 1, worker, at, token: token(&broker, job).await? };
    say(&broker, Verb::Started, started).await?;
    let hint = tokio::time::timeout(PATIENCE, hints.next()).await?.unwrap();
    assert_eq!(serde_json::from_slice::<Stop>(&hint.payload)?.runs, [(job, 1)]);
    service.stop().await
}

/// Hazard 3: the run in a stream outlives the leader that put it there: its outcome counts.
#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_of_a_run_that_an_earlier_leader_dispatched_is_accepted() -> anyhow::Result<()>
{
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let first = Service::start(&nats.url());
    request(&broker, Verb::Enqueue, one(1), in_a_while()).await?;
    until_dispatched(&broker).await?;
    first.stop().await?;
    let second = Service::start(&nats.url());
    let job = look_up(&broker, 1).await?.unwrap();
    assert_eq!((job.status, job.run), (Status::Queued, 1));
    say(&broker, Verb::Outcome, done(&broker, &job).await?).await?;
    let jobs = broker.js.get_key_value(names::JOBS).await?;
    let begun = Instant::now();
    loop {
        let stored = jobs.get(job.id.to_string()).await?;
        let stored: Option<Job> = stored.map(|job| serde_json::from_slice(&job)).transpose()?;
        if stored.as_ref().is_some_and(|job| job.status == Status::Completed) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{stored:?}");
    }
    second.stop().await
}

/// Hazard 2: a run that is in no stream may have ended, with its outcome on the way. A new leader
/// processes the commands up to the end that it found, and only then reconciles.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_outcome_is_on_the_way_is_not_dispatched_again() -> anyhow::Result<()> {
    let mut nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let first = Service::start(&nats.url());
    request(&broker, Verb::Enqueue, one(1), in_a_while()).await?;
    until_dispatched(&broker).await?;
    let job = look_up(&broker, 1).await?.unwrap();
    first.stop().await?;
    // More than one batch of commands before the outcome is reached.
    for filler in 0..600 {
        say(
            &broker,
            Verb::Started,
            Started {
                job: JobId::from_u128(9),
                run: filler,
                worker: "x".into(),
                at: 1,
                token: None,
            },
        )
        .await?;
    }
    say(&broker, Verb::Outcome, done(&broker, &job).await?).await?;
    let stream = broker.js.get_stream(names::work_stream(PriorityClass::Normal)).await?;
    stream
        .purge()
        .filter(names::work(PriorityClass::Normal, job.job_type, job.id, 1).to_string())
        .await?;
    // A broker that was killed has forgotten the ids of messages: nothing else stops a repeat.
    nats.kill_and_restart()?;
    let last = broker.last_sequence(names::work_stream(PriorityClass::Normal)).await?;
    let second = Service::start(&nats.url());
    request(&broker, Verb::Enqueue, one(2), in_a_while()).await?;
    until_dispatched(&broker).await?;
    let work = broker.list_work(PriorityClass::Normal).await?;
    assert_eq!(work.into_iter().collect::<Vec<_>>(), [(JobId::from_u128(2), 1)]);
    // One for the new fence, one for the new job.
    assert_eq!(broker.last_sequence(names::work_stream(PriorityClass::Normal)).await?, last + 2);
    second.stop().await
}

/// Hazard 4: what a leader appended and did not live to write is written by the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_writes_what_the_leader_before_it_left_behind() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let job = JobId::from_u128(7);
    let enqueued = Event::Enqueued(Box::new(event::Enqueued {
        job,
        project: "p".into(),
        batch: "b".into(),
        job_type: JobType::ProcessBatch,
        priority: 10,
        priority_class: PriorityClass::Normal,
        max_attempts: 3,
        own_attempts: false,
        retry: None,
        run_at: None,
        expires_at: None,
        data: Json::default(),
        trace: None,
    }));
    let events = vec![Event::LeaderElected { term: 1, leader: "gone".into() }, enqueued];
    let batch = event::Batch { at: service::now_ms(), commands: Vec::new(), events };
    let appended = broker.append(0, 0, serde_json::to_vec(&batch)?.into()).await?;
    assert_eq!(appended, Appended::At(1));
    let service = Service::start(&nats.url());
    let jobs = broker.js.get_key_value(names::JOBS).await?;
    let begun = Instant::now();
    while jobs.get(job.to_string()).await?.is_none() {
        assert!(begun.elapsed() < PATIENCE, "the bucket never has the job");
    }
    service.stop().await
}

/// A live job is written once it has stayed as it is, or where its leader ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_job_reaches_the_bucket_late() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let service = Service::start(&nats.url());
    request(&broker, Verb::Enqueue, one(1), in_a_while()).await?;
    let begun = Instant::now();
    while broker.read_job(JobId::from_u128(1)).await?.is_none() {
        assert!(begun.elapsed() < PATIENCE, "the bucket never has the job");
    }
    let bucket = broker.js.get_stream(names::JOBS_STREAM).await?;
    let subject = names::key(names::JOBS, &JobId::from_u128(1).to_string());
    let written = bucket.get_last_raw_message_by_subject(&subject).await?;
    let enqueued = broker.js.get_stream(names::EVENTS).await?;
    let enqueued = enqueued.get_last_raw_message_by_subject(names::EVENT_SUBJECT).await?;
    let waited = written.time - enqueued.time;
    assert!(waited.as_seconds_f64() > 1.9, "it was written after {waited}");
    request(&broker, Verb::Enqueue, one(2), in_a_while()).await?;
    service.stop().await?;
    assert!(broker.read_job(JobId::from_u128(2)).await?.is_some());
    Ok(())
}

/// Hazard 7: COMMANDS is cut by sequence, below what the older of two snapshots covers, and what
/// is left is enough to start from. EVENTS stays where metrics has not read it.
#[tokio::test(flavor = "multi_thread")]
async fn commands_are_cut_below_the_older_snapshot_and_a_start_needs_no_more() -> anyhow::Result<()>
{
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let often = ["--snapshot-every-s", "1", "--events-retention-s", "0"];
    let first = Service::start_with(&nats.url(), &often);
    let begun = Instant::now();
    let mut enqueued = 0;
    let cut = loop {
        enqueued += 1;
        let batch = format!("b{enqueued}").into();
        let mut command = one(enqueued);
        command.jobs[0].batch = batch;
        request(&broker, Verb::Enqueue, command, in_a_while()).await?;
        let state = broker.js.get_stream(names::COMMANDS).await?.cached_info().state.clone();
        if state.first_sequence > 1 {
            break state.first_sequence;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing was cut");
    };
    first.stop().await?;
    let events = broker.js.get_stream(names::EVENTS).await?.cached_info().state.clone();
    assert_eq!(events.first_sequence, 1, "metrics has read nothing");
    let second = Service::start(&nats.url());
    for job in 1..=enqueued {
        let found = look_up(&broker, job).await?;
        assert_eq!(found.map(|job| job.status), Some(Status::Queued), "{job}, cut below {cut}");
    }
    second.stop().await
}

/// Times that were missed without a leader fire once, for the last of them, however many replicas
/// start at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_missed_time_of_a_schedule_fires_once_with_three_replicas() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = connect(&nats).await?;
    let now = service::now_ms();
    let schedule = Schedule {
        // Not in the next minutes, so that only the missed times can fire here.
        cron: format!("{} * * * *", (now / 60_000 + 30) % 60).into(),
        time_zone: "UTC".into(),
        batch_id: "b".into(),
        priority: 10,
        max_attempts: None,
        data: Json::default(),
        if_live: IfLive::Skip,
    };
    let long_ago = schedule.next_after(now - 5 * 3_600_000)?;
    let last = schedule.last_until(now)?;
    let timed =
        ScheduleState { schedule, next_at: Some(long_ago), last_at: None, last_job_id: None };
    let (project, name) = ("p".into(), "hourly".into());
    let set = Event::ScheduleSet { project, name, schedule: Box::new(timed) };
    let events = vec![Event::LeaderElected { term: 1, leader: "gone".into() }, set];
    let batch = event::Batch { at: now, commands: Vec::new(), events };
    broker.append(0, 0, serde_json::to_vec(&batch)?.into()).await?;
    let services = [(); 3].map(|()| Service::start(&nats.url()));
    let fired = async || -> anyhow::Result<Vec<(i64, bool)>> {
        let events = broker.js.get_stream(names::EVENTS).await?;
        let mut fired = Vec::new();
        for sequence in 1..=broker.last_sequence(names::EVENTS).await? {
            let message = events.get_raw_message(sequence).await?;
            let (_, batch) = wire::events(sequence, Some(&message.headers), &message.payload)?;
            fired.extend(batch.events.iter().filter_map(|event| match event {
                Event::ScheduleFired { at, job, .. } => Some((*at, job.is_some())),
                _ => None,
            }));
        }
        Ok(fired)
    };
    let begun = Instant::now();
    while fired().await?.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it never fires");
    }
    // Another leads, and another: what fired stays fired.
    for service in services {
        service.stop().await?;
        assert_eq!(fired().await?, [(last, true)]);
    }
    Ok(())
}

/// A full bucket delays the projection, and nothing else: the leader goes on, and writes the
/// missing keys once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_bucket_stops_nobody_and_is_caught_up_with() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes { jobs_bytes: Some(20_000), ..Sizes::default() }).await?;
    let service = Service::start(&nats.url());
    let count = 100;
    for job in 1..=count {
        let mut command = one(job);
        command.jobs[0].batch = format!("b{job}").into();
        assert_eq!(
            request(&broker, Verb::Enqueue, command, in_a_while()).await?,
            Reply::Enqueued { canceled: 0 }
        );
    }
    let cancel = Cancel { project: "p".into(), batches: None, idempotency: None };
    request(&broker, Verb::Cancel, cancel, in_a_while()).await?;
    let mut in_memory = 0;
    for job in 1..=count {
        in_memory += u32::from(look_up(&broker, job).await?.is_some());
    }
    assert!(in_memory > 0, "so many jobs do not fit into the bucket");
    let stream = broker.js.get_stream(names::JOBS_STREAM).await?;
    let mut config = stream.cached_info().config.clone();
    config.max_bytes = 10_000_000;
    broker.js.update_stream(config).await?;
    let begun = Instant::now();
    for job in 1..=count {
        while broker.read_job(JobId::from_u128(job)).await?.is_none() {
            assert!(begun.elapsed() < PATIENCE, "{job} never comes");
        }
    }
    let events = broker.js.get_stream(names::EVENTS).await?;
    let mut terms = 0;
    for sequence in 1..=broker.last_sequence(names::EVENTS).await? {
        let message = events.get_raw_message(sequence).await?;
        let (_, batch) = wire::events(sequence, Some(&message.headers), &message.payload)?;
        terms += batch
            .events
            .iter()
            .filter(|event| matches!(event, Event::LeaderElected { .. }))
            .count();
    }
    assert_eq!(terms, 1, "another replica had to lead");
    service.stop().await
}

/// EVENTS that is so full that no replica can claim to lead is trimmed below what a snapshot
/// covers.
#[tokio::test(flavor = "multi_thread")]
async fn full_events_are_cut_and_led_again() -> anyhow::Result<()> {
    let nats = Nats::start()?;
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes { events_bytes: Some(60_000), ..Sizes::default() }).await?;
    let service = Service::start(&nats.url());
    // Fills it to the brim, one message each: the rest is processed once there is room.
    for job in 1..=100 {
        let mut command = one(job);
        command.jobs[0].batch = format!("b{job}").into();
        command.jobs[0].data = Json::of(&BTreeMap::from([("text", "x".repeat(1_000))]))?;
        let asked = request(&broker, Verb::Enqueue, command, in_a_while());
        // A leader with a full bucket cannot reply.
        let _ = tokio::time::timeout(Duration::from_secs(1), asked).await;
    }
    for job in 1..=100 {
        let begun = Instant::now();
        while look_up(&broker, job).await?.is_none() {
            assert!(begun.elapsed() < PATIENCE, "job {job} is never processed");
        }
    }
    let first = broker.js.get_stream(names::EVENTS).await?.cached_info().state.first_sequence;
    assert!(first > 1, "it was never full");
    service.stop().await
}

/// Hazard 18: the crate that decides has no dependency with I/O.
#[test]
fn the_folding_process_has_no_client_for_anything_but_nats() {
    for package in ["services/state", "libs/service", "libs/nats", "libs/job"] {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let manifest = std::fs::read_to_string(format!("{root}/{package}/Cargo.toml")).unwrap();
        let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        for client in ["reqwest", "hyper", "ureq", "clickhouse", "isahc", "curl"] {
            assert!(!dependencies.contains(client), "{package} depends on {client}");
        }
    }
}
