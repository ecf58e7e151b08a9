//! The bucket follows the fold: changed jobs in atomic batches, one in flight, each fenced.
//! A job that changes again before its turn is written once, as it is then.

use std::time::{Duration, Instant};

use anyhow::Context;
use job::{Position, Queued};
use mesh::{
    bucket::{Fence, WRITE_KEYS_MAX, Write},
    names,
    publish::{self, LIMITS, WRONG_LAST_SEQUENCE},
    wire::Through,
};

use crate::leader::{Done, Leader};

/// The most bytes of one write.
const WRITE_BYTES_MAX: usize = 8_000_000;

/// How long a few changes wait for more: the broker pays for each batch, and a job that is
/// queued, run and done meanwhile is written once. Memory answers for it until then.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How long a full bucket is left alone: what ended long ago leaves it meanwhile.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What a write held, and what became of it.
pub(crate) struct Written {
    keys: Vec<(Queued, Position)>,
    end: Result<Fence, publish::Error>,
}

impl Leader<'_> {
    /// Starts a write where the bucket is behind and none is under way.
    pub(crate) fn kick_projection(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let few = self.state.behind_by() < WRITE_KEYS_MAX;
        let waits = few && now < self.wrote_at + WRITE_EVERY;
        if self.writing || waits || now < self.write_again_at || !self.state.is_behind() {
            return Ok(());
        }
        self.wrote_at = now;
        let mut keys = Vec::new();
        let mut writes = Vec::new();
        let mut bytes = 0;
        while keys.len() < WRITE_KEYS_MAX && bytes < WRITE_BYTES_MAX {
            let Some(what) = self.state.behind(1).pop() else { break };
            if let Some((version, write)) = self.write_of(what)? {
                bytes += write.value.len();
                keys.push((what, version));
                writes.push(write);
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        let through = Through { position: self.state.covered(), term: self.state.term() };
        let (broker, fence, done) = (self.broker.clone(), self.bucket, self.done.clone());
        let how = self.config.writes();
        self.writing = true;
        tokio::spawn(async move {
            let end = broker.write_bucket(fence, through, writes, how).await;
            let _ = done.send(Done::Written(Written { keys, end })).await;
        });
        Ok(())
    }

    /// Takes in the end of a write: what the bucket has, memory may let go.
    pub(crate) fn written(&mut self, written: Written) -> anyhow::Result<()> {
        self.writing = false;
        self.bucket = match written.end {
            Ok(fence) => fence,
            Err(error) if error.is(WRONG_LAST_SEQUENCE) => {
                return Err(error).context("another state service writes the bucket");
            }
            Err(error) if error.is(LIMITS) => {
                tracing::error!(error = %error, "the bucket of jobs is full: status falls behind");
                self.write_again_at = Instant::now() + FULL_PAUSE;
                self.state.settle(self.bucket.through.position);
                return Ok(());
            }
            // The write may have been made or not: the start reads how far the bucket is.
            Err(error) => return Err(error).context("the bucket could not be written"),
        };
        for (what, version) in written.keys {
            self.state.stored(what, version);
        }
        Ok(())
    }

    /// When the next write may begin, where one is wanted.
    pub(crate) fn next_write(&self) -> Option<Instant> {
        let wanted = self.state.is_behind() && !self.writing;
        wanted.then(|| self.write_again_at.max(self.wrote_at + WRITE_EVERY))
    }

    fn write_of(&self, what: Queued) -> anyhow::Result<Option<(Position, Write)>> {
        match what {
            Queued::Job(id) => {
                if let Some((version, json)) = self.state.asleep_json(id) {
                    let write = Write { key: id.to_string(), value: json.into(), ttl: None };
                    return Ok(Some((version, write)));
                }
                let Some(job) = self.state.job(id) else { return Ok(None) };
                let retention_ms = u64::try_from(self.state.retention_ms(&job.project));
                let retention = Duration::from_millis(retention_ms.unwrap_or(0));
                let write = Write {
                    key: id.to_string(),
                    value: serde_json::to_vec(&job)?.into(),
                    ttl: job.status.is_terminal().then_some(retention),
                };
                Ok(Some((job.version, write)))
            }
            Queued::Answer(key) => {
                let Some(answer) = self.state.answer(key) else { return Ok(None) };
                // A project may keep its jobs longer; a repeat must find its answer for as long.
                let retention_ms = self.state.longest_retention_ms();
                let retention = Duration::from_millis(u64::try_from(retention_ms).unwrap_or(0));
                let write = Write {
                    key: names::answer_key(key),
                    value: serde_json::to_vec(answer)?.into(),
                    ttl: Some(retention),
                };
                Ok(Some((Position::default(), write)))
            }
        }
    }
}
