//! The broker's limit: bare loops that move the messages and bytes of the same number of jobs
//! through streams with the same settings, in groups of the same size, and do nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_nats::{
    Client, HeaderMap,
    jetstream::{self, consumer},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    CALLERS, PATIENCE, REQUEST_JOBS,
    drain::Drained,
    gauge::{STREAMS, Traffic},
    mesh::Mesh,
};

/// The subjects of their bare copies.
const SUBJECTS: [&str; 4] = ["bare.cmd.>", "bare.evt", "bare.job.*", "bare.work.>"];
/// Messages of work that are out at once.
const AHEAD: usize = 1_024;
/// Messages that are published with one answer.
const GROUP: usize = 1_000;

/// The bare loops, as they were measured.
#[derive(Debug)]
pub struct Bare {
    /// Enqueued.
    pub bulk: Drained,
    /// Dispatched, taken and recorded as ended.
    pub drain: Drained,
    /// Both at the same time.
    pub life: Drained,
}

/// Runs the loops on the broker of a mesh at rest, `jobs` each.
pub fn measure(
    mesh: &Mesh,
    jobs: usize,
    enqueue: &Traffic,
    drain: &Traffic,
) -> anyhow::Result<Bare> {
    let run = |enqueue: Option<&Traffic>, drain: Option<&Traffic>| {
        let url = mesh.nats_url().to_owned();
        let (enqueue, drain) = (enqueue.cloned(), drain.cloned());
        let loops = Loops { url, jobs, enqueue, drain };
        let before = mesh.usage(None)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let rate =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, loops.run()).await? })?;
        anyhow::Ok(Drained { rate, usage: [before, mesh.usage(None)?] })
    };
    // On threads of their own: services are processes, and do not wait for each other either.
    let rates = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            anyhow::Ok(Bare {
                bulk: run(Some(enqueue), None)?,
                drain: run(None, Some(drain))?,
                life: run(Some(enqueue), Some(drain))?,
            })
        });
        running.join().ok().context("the loops do not panic")
    });
    rates?
}

/// How large a stream of the loops may grow.
const BARE_BYTES_MAX: i64 = 1 << 30;

/// One run of the loops.
struct Loops {
    url: String,
    jobs: usize,
    enqueue: Option<Traffic>,
    drain: Option<Traffic>,
}

/// Jobs whose status must be written: how many, and whether they are terminal.
type Status = (usize, bool);

impl Loops {
    async fn run(&self) -> anyhow::Result<f64> {
        let js = self.connect().await?;
        for (name, subjects) in STREAMS.into_iter().zip(SUBJECTS) {
            let mut config = js.get_stream(name).await?.cached_info().config.clone();
            config.name = format!("BARE_{name}");
            config.subjects = vec![subjects.to_owned()];
            // The broker reserves this, beside what the mesh's own streams have.
            config.max_bytes = BARE_BYTES_MAX;
            js.create_stream(config).await?;
        }
        let took = self.run_through(&js).await;
        for name in STREAMS {
            js.delete_stream(format!("BARE_{name}")).await?;
        }
        Ok(self.jobs as f64 / took?.as_secs_f64())
    }

    async fn connect(&self) -> anyhow::Result<jetstream::Context> {
        Ok(nats::Broker::connect(&self.url, "bench").await?.js)
    }

    /// Starts all loops, and waits until every job has come to its end.
    async fn run_through(&self, js: &jetstream::Context) -> anyhow::Result<Duration> {
        let mut running = JoinSet::new();
        let (written, to_write) = mpsc::unbounded_channel();
        let (ready, to_dispatch) = mpsc::unbounded_channel();
        let (ended, mut ends) = mpsc::unbounded_channel();
        // Metrics and an edge.
        for _ in 0..2 {
            running.spawn(read(read_stream(js, STREAMS[1]).await?));
        }
        let commands = read_stream(js, STREAMS[0]).await?;
        running.spawn(self.fold(self.connect().await?, commands, written, ready.clone()));
        running.spawn(self.write(self.connect().await?, to_write, ended));
        if let Some(traffic) = &self.drain {
            let room = Arc::new(Semaphore::new(AHEAD));
            let payload = traffic.payload(3);
            running.spawn(dispatch(self.connect().await?, payload, to_dispatch, room.clone()));
            running.spawn(self.process(self.connect().await?, traffic.clone(), room));
            if self.enqueue.is_none() {
                ready.send(self.jobs)?;
            }
        }
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        if let Some(traffic) = &self.enqueue {
            let js = self.connect().await?;
            for caller in 0..CALLERS {
                let count = self.jobs / REQUEST_JOBS / CALLERS;
                callers.spawn(call(js.clone(), traffic.part(0, REQUEST_JOBS), caller, count));
            }
        }
        let all = async {
            while let Some(called) = callers.join_next().await {
                called??;
            }
            let mut left = if self.drain.is_some() { self.jobs } else { 0 };
            while left > 0 {
                let jobs: usize = ends.recv().await.context("the bucket is no longer written")?;
                left = left.saturating_sub(jobs);
            }
            anyhow::Ok(begun.elapsed())
        };
        tokio::select! {
            took = all => took,
            Some(failed) = running.join_next() => {
                failed??;
                anyhow::bail!("a loop ended before its time")
            }
        }
    }

    /// Reads commands, and appends what comes of them.
    fn fold(
        &self,
        js: jetstream::Context,
        mut commands: consumer::pull::Ordered,
        written: mpsc::UnboundedSender<Status>,
        ready: mpsc::UnboundedSender<usize>,
    ) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let (enqueue, drain) = (self.enqueue.clone(), self.drain.clone());
        async move {
            while let Some(command) = commands.try_next().await? {
                let is_end = command.subject.as_str() == "bare.cmd.outcome";
                let traffic = if is_end { &drain } else { &enqueue };
                let traffic = traffic.as_ref().context("only requested messages arrive")?;
                let jobs = if is_end { traffic.group() } else { REQUEST_JOBS };
                js.publish("bare.evt", traffic.part(1, jobs)).await?.await?;
                // Active jobs reach the bucket late, if at all; terminal ones always.
                let writes = if is_end { jobs } else { traffic.messages(2, jobs) };
                written.send((writes, is_end))?;
                if let Some(caller) = command.subject.strip_prefix("bare.cmd.enqueue.") {
                    js.client().publish(format!("bare.reply.{caller}"), Bytes::new()).await?;
                    // Without a drain, no run is dispatched.
                    let _ = ready.send(jobs);
                }
            }
            Ok(())
        }
    }

    /// Writes the status of jobs into the bucket, what came meanwhile at once.
    fn write(
        &self,
        js: jetstream::Context,
        mut to_write: mpsc::UnboundedReceiver<Status>,
        ended: mpsc::UnboundedSender<usize>,
    ) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let payload = self.drain.as_ref().or(self.enqueue.as_ref()).map(|it| it.payload(2));
        async move {
            let payload = payload.context("something is measured")?;
            let mut next = [0, 0];
            let mut left: [usize; 2] = [0, 0];
            while let Some((jobs, is_end)) = to_write.recv().await {
                left[usize::from(is_end)] += jobs;
                while let Ok((jobs, is_end)) = to_write.try_recv() {
                    left[usize::from(is_end)] += jobs;
                }
                for is_end in [false, true] {
                    let place = usize::from(is_end);
                    while left[place] > 0 {
                        let count = left[place].min(GROUP);
                        let message = |n: usize| {
                            let mut headers = HeaderMap::new();
                            if is_end {
                                headers.insert("Nats-TTL", "604800s");
                            }
                            (format!("bare.job.{n:032}"), headers, payload.clone())
                        };
                        publish_group(&js, (next[place]..next[place] + count).map(message)).await?;
                        next[place] += count;
                        left[place] -= count;
                        if is_end {
                            ended.send(count)?;
                        }
                    }
                }
            }
            Ok(())
        }
    }

    /// Takes work, reports ends in groups, then acks it.
    fn process(
        &self,
        js: jetstream::Context,
        traffic: Traffic,
        room: Arc<Semaphore>,
    ) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let all = self.jobs;
        async move {
            let config = consumer::pull::Config {
                durable_name: Some("process_batch".into()),
                max_ack_pending: 10_000,
                ..Default::default()
            };
            let stream = js.get_stream(format!("BARE_{}", STREAMS[3])).await?;
            let consumer = stream.create_consumer(config).await?;
            let mut work = consumer.stream().max_messages_per_batch(GROUP).messages().await?;
            let (mut group, mut seen) = (Vec::new(), 0);
            let size = traffic.group();
            while let Some(message) = work.try_next().await? {
                group.push(message);
                seen += 1;
                if group.len() < size && seen < all {
                    continue;
                }
                let group = std::mem::take(&mut group);
                let (js, room) = (js.clone(), room.clone());
                let payload = traffic.payload(0);
                tokio::spawn(async move {
                    let published = js.publish("bare.cmd.outcome", payload).await?.await;
                    published?;
                    for message in &group {
                        message.ack().await.map_err(anyhow::Error::from_boxed)?;
                    }
                    room.add_permits(group.len());
                    anyhow::Ok(())
                });
            }
            Ok(())
        }
    }
}

/// Publishes work, as much as there is room for.
async fn dispatch(
    js: jetstream::Context,
    payload: Bytes,
    mut ready: mpsc::UnboundedReceiver<usize>,
    room: Arc<Semaphore>,
) -> anyhow::Result<()> {
    let mut next = 0;
    while let Some(mut left) = ready.recv().await {
        while left > 0 {
            room.acquire().await?.forget();
            let mut count = 1;
            while count < left.min(GROUP)
                && let Ok(permit) = room.try_acquire()
            {
                permit.forget();
                count += 1;
            }
            let message = |n: usize| {
                let subject = format!("bare.work.normal.process_batch.{n:032}.1");
                (subject, HeaderMap::new(), payload.clone())
            };
            publish_group(&js, (next..next + count).map(message)).await?;
            next += count;
            left -= count;
        }
    }
    Ok(())
}

/// Enqueues: one command after the other, each until its reply.
async fn call(
    js: jetstream::Context,
    payload: Bytes,
    caller: usize,
    count: usize,
) -> anyhow::Result<()> {
    let client: Client = js.client();
    let mut replies = client.subscribe(format!("bare.reply.{caller}")).await?;
    client.flush().await?;
    for _ in 0..count {
        let subject = format!("bare.cmd.enqueue.{caller}");
        js.publish(subject, payload.clone()).await?.await?;
        replies.next().await.context("a reply comes")?;
    }
    Ok(())
}

/// Publishes messages, one behind the other, and waits for the answer to the last.
async fn publish_group(
    js: &jetstream::Context,
    messages: impl ExactSizeIterator<Item = (String, HeaderMap, Bytes)>,
) -> anyhow::Result<()> {
    let count = messages.len();
    for (n, (subject, headers, payload)) in (1..).zip(messages) {
        if n == count {
            js.publish_with_headers(subject, headers, payload).await?.await?;
        } else {
            js.client().publish_with_headers(subject, headers, payload).await?;
        }
    }
    Ok(())
}

async fn read_stream(
    js: &jetstream::Context,
    name: &str,
) -> anyhow::Result<consumer::pull::Ordered> {
    let stream = js.get_stream(format!("BARE_{name}")).await?;
    let config = consumer::pull::OrderedConfig::default();
    Ok(stream.create_consumer(config).await?.messages().await?)
}

async fn read(mut messages: consumer::pull::Ordered) -> anyhow::Result<()> {
    while messages.try_next().await?.is_some() {}
    Ok(())
}
