//! How many messages and bytes some jobs move through the streams of a mesh.

use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::jetstream::{self, stream::State};
use bytes::Bytes;

use super::PATIENCE;

/// The streams that a job passes.
pub const STREAMS: [&str; 4] = ["COMMANDS", "EVENTS", "KV_jobs", "WORK_NORMAL"];
/// What the broker stores in addition to a payload: frame, subject and headers.
const BYTES_BESIDE: u64 = 100;

/// What some jobs moved through a stream.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    pub messages: u64,
    pub bytes_each: usize,
}

/// What some jobs moved through each stream.
#[derive(Clone, Debug)]
pub struct Traffic {
    jobs: u64,
    pub moved: [Moved; 4],
}

impl Traffic {
    /// How many jobs go in a message of COMMANDS.
    pub fn group(&self) -> usize {
        (self.jobs / self.moved[0].messages.max(1)).max(1) as usize
    }

    /// A payload of as many bytes as a message of this stream has.
    pub fn payload(&self, stream: usize) -> Bytes {
        vec![b'x'; self.moved[stream].bytes_each].into()
    }

    /// As many messages as these jobs are in this stream.
    pub fn messages(&self, stream: usize, jobs: usize) -> usize {
        self.moved[stream].messages as usize * jobs / self.jobs as usize
    }

    /// As many bytes as these jobs have in messages of this stream.
    pub fn part(&self, stream: usize, jobs: usize) -> Bytes {
        let Moved { messages, bytes_each } = self.moved[stream];
        vec![b'x'; messages as usize * bytes_each * jobs / self.jobs as usize].into()
    }
}

/// Looks at what a mesh moves through its streams.
pub struct Gauge {
    js: jetstream::Context,
    before: [State; 4],
}

impl Gauge {
    /// From now on.
    pub async fn start(url: &str) -> anyhow::Result<Self> {
        let js = nats::Broker::connect(url, "bench").await?.js;
        let before = states(&js).await?;
        Ok(Self { js, before })
    }

    /// How large messages of work are, seen while there are some.
    pub async fn work_bytes(&self) -> anyhow::Result<usize> {
        let begun = Instant::now();
        loop {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "no work was seen");
            let state = self.js.get_stream(STREAMS[3]).await?.cached_info().state.clone();
            if state.messages > 100 {
                return Ok(each(state.bytes, state.messages));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What was moved for so many jobs.
    pub async fn end(self, jobs: usize, work_bytes: usize) -> anyhow::Result<Traffic> {
        let after = states(&self.js).await?;
        let mut moved = [Moved { messages: 0, bytes_each: 0 }; 4];
        for (stream, moved) in moved.iter_mut().enumerate() {
            let (before, after) = (&self.before[stream], &after[stream]);
            moved.messages = after.last_sequence - before.last_sequence;
            // Replaced and purged messages are not visible: the size is estimated from the
            // remaining ones.
            let grown = before.first_sequence == after.first_sequence
                && after.messages - before.messages == moved.messages;
            moved.bytes_each = match (stream, grown) {
                (3, _) => work_bytes,
                (_, true) => each(after.bytes - before.bytes, moved.messages),
                (_, false) => each(after.bytes, after.messages),
            };
        }
        Ok(Traffic { jobs: jobs as u64, moved })
    }
}

async fn states(js: &jetstream::Context) -> anyhow::Result<[State; 4]> {
    let mut states = Vec::new();
    for name in STREAMS {
        states.push(js.get_stream(name).await?.cached_info().state.clone());
    }
    states.try_into().ok().context("there are four streams")
}

fn each(bytes: u64, messages: u64) -> usize {
    (bytes / messages.max(1)).saturating_sub(BYTES_BESIDE) as usize
}
