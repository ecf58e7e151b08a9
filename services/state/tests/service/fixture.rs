//! A state service with a NATS server of its own, and what edges and processors send it.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use clap::Parser;
use futures_util::StreamExt;
use job::{
    Digest, Job, JobId, JobLabels, JobType, PriorityClass, Usage,
    command::{End, Enqueue, NewJob, Outcome},
    reply::Reply,
};
use nats::{
    Broker,
    heartbeat::Heartbeat,
    names::{self, Verb},
    publish::Message,
    query::{JobAnswer, JobQuery, ReadToken},
    topology::{self, Sizes},
    wire::{Answered, Item},
};
use serde::Serialize;
use testkit::Nats;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long something that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
pub struct Args {
    #[command(flatten)]
    config: state::Config,
}

/// A state service on a dedicated thread, like a process.
pub struct Service {
    stop: CancellationToken,
    running: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Service {
    pub fn start(url: &str) -> Self {
        Self::start_with(url, &[])
    }

    pub fn start_with(url: &str, more: &[&str]) -> Self {
        let args = ["state", "--nats-url", url].into_iter().chain(more.iter().copied());
        let config = Args::parse_from(args).config;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let running = std::thread::spawn(move || {
            tokio::runtime::Runtime::new()?.block_on(state::run(config, stopped))
        });
        Self { stop, running }
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        tokio::task::spawn_blocking(|| self.running.join().unwrap()).await?
    }
}

pub async fn connect(nats: &Nats) -> anyhow::Result<Broker> {
    let broker = Broker::connect(&nats.url(), "test").await?;
    topology::ensure(&broker, Sizes::default()).await?;
    Ok(broker)
}

/// Publishes one command and waits for its reply. `deadline` is in ms since 1970.
pub async fn request<T: Serialize>(
    broker: &Broker,
    verb: Verb,
    command: T,
    deadline: i64,
) -> anyhow::Result<Reply> {
    let inbox = broker.client.new_inbox();
    let mut replies = broker.client.subscribe(inbox.clone()).await?;
    let mut headers = HeaderMap::new();
    headers.insert(names::REPLY, inbox.as_str());
    headers.insert(names::DEADLINE, deadline.to_string());
    let item = Item { id: Uuid::now_v7(), command };
    let payload = serde_json::to_vec(&[&item])?.into();
    broker.publish(Message { subject: verb.subject(), headers, payload }).await?;
    let reply = tokio::time::timeout(PATIENCE, replies.next()).await?.unwrap();
    let mut answered: Vec<Answered> = serde_json::from_slice(&reply.payload)?;
    assert_eq!((answered.len(), answered[0].id), (1, item.id));
    Ok(answered.remove(0).reply)
}

/// Publishes what no reply follows.
pub async fn say<T: Serialize>(broker: &Broker, verb: Verb, word: T) -> anyhow::Result<()> {
    let payload = serde_json::to_vec(&[Item { id: Uuid::now_v7(), command: word }])?.into();
    broker.publish(Message { subject: verb.subject(), headers: HeaderMap::new(), payload }).await?;
    Ok(())
}

pub fn one(job: u128) -> Enqueue {
    Enqueue::new("p".into(), vec![NewJob::new(JobId::from_u128(job), "b".into())])
}

/// The token of run 1 of a job.
pub async fn token(broker: &Broker, job: JobId) -> anyhow::Result<Option<Digest>> {
    Ok(broker.run_tokens().await?.map(|tokens| tokens.token(job, 1)))
}

/// The report that run 1 of a job is done.
pub async fn done(broker: &Broker, job: &Job) -> anyhow::Result<Outcome> {
    Ok(Outcome {
        job: job.id,
        run: 1,
        worker: "tester".into(),
        labels: JobLabels { attempt: 1, ..JobLabels::job(job) },
        started_at: Some(service::now_ms()),
        finished_at: service::now_ms(),
        usage: Usage::default(),
        end: End::Done { result: None, stored: None },
        token: token(broker, job.id).await?,
    })
}

pub fn in_a_while() -> i64 {
    service::now_ms() + 60_000
}

pub async fn look_up(broker: &Broker, job: u128) -> anyhow::Result<Option<Job>> {
    let question = JobQuery { job: JobId::from_u128(job) };
    let begun = Instant::now();
    loop {
        match broker
            .ask_state::<_, JobAnswer>(names::QUERY_JOB, &question, &ReadToken::default(), PATIENCE)
            .await
        {
            Ok(answer) => return Ok(answer.job),
            Err(error) => {
                anyhow::ensure!(begun.elapsed() < PATIENCE, "there is no leader: {error}")
            }
        }
    }
}

/// Says that a processor with one slot is there, until the stream of its class has work.
pub async fn until_dispatched(broker: &Broker) -> anyhow::Result<()> {
    let begun = Instant::now();
    let heartbeat = Heartbeat {
        processor: "tester".into(),
        capacity: 1,
        job_types: JobType::ALL.to_vec(),
        ..Heartbeat::default()
    };
    while broker.list_work(PriorityClass::Normal).await?.is_empty() {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "nothing was dispatched");
        let said = serde_json::to_vec(&heartbeat)?;
        broker.client.publish(names::heartbeat("tester"), said.into()).await?;
    }
    Ok(())
}
