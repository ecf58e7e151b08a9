//! The projection into the bucket `jobs`: terminal jobs at once, active jobs that do not change a
//! little later, one write at a time, each fenced. A job that changes again before its write is
//! written once, in its latest version.

use std::time::{Duration, Instant};

use anyhow::Context;
use job::{DirtyKey, Position, time::Millis};
use mesh::{
    bucket::{Fence, WRITE_KEYS_MAX, Write},
    names,
    publish::{self, LIMITS, WRONG_LAST_SEQUENCE},
    wire::ProjectionWatermark,
};

use crate::leader::{Done, Leader};

/// The most bytes of one write.
const WRITE_BYTES_MAX: usize = 8_000_000;

/// How long a few changes wait for more: the broker pays for each batch, and a job that is
/// queued, run and done meanwhile is written once. Memory answers for it until then.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How long after its change a live job is written, in ms.
const LIVE_AFTER_MS: Millis = 2_000;
/// Live jobs of one write: 2,000 a second where nothing else is written.
const LIVE_KEYS_MAX: usize = 100;
/// Live jobs of a write that has much else to write.
const LIVE_KEYS_MIN: usize = 10;
/// How long a stopping leader may take to write active jobs: less than the rest of its lease.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// How long a full bucket is left alone: what ended long ago leaves it meanwhile.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What a write held, and what became of it.
pub(crate) struct Written {
    keys: Vec<(DirtyKey, Position)>,
    end: Result<Fence, publish::Error>,
}

impl Leader<'_> {
    /// Starts a write where the bucket is behind and none is under way.
    pub(crate) fn start_due_projection(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let few = self.state.behind_by() < WRITE_KEYS_MAX;
        let waits = few && now < self.wrote_at + WRITE_EVERY;
        if self.writing || waits || now < self.write_again_at {
            return Ok(());
        }
        self.write(self.now() - LIVE_AFTER_MS, LIVE_KEYS_MAX)
    }

    /// Writes dirty keys as time allows, so that clients find active jobs while there is no leader.
    pub(crate) async fn flush(&mut self) {
        let flushed = tokio::time::timeout(FLUSH_WITHIN, self.write_all()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(error = format!("{error:#}"), "the bucket is behind at the end");
        }
    }

    async fn write_all(&mut self) -> anyhow::Result<()> {
        let full = self.write_again_at;
        loop {
            if !self.writing {
                self.write(Millis::MAX, WRITE_KEYS_MAX)?;
            }
            if !self.writing || self.write_again_at > full {
                return Ok(());
            }
            let done = self.finished.recv().await;
            self.take_in(done.context("the leader holds a sender itself")?)?;
        }
    }

    /// Starts a write of terminal jobs and of active jobs that changed before `live_before`, up to
    /// `live_max` of them if there are few others.
    fn write(&mut self, live_before: Millis, live_max: usize) -> anyhow::Result<()> {
        let mut keys = Vec::new();
        let mut writes = Vec::new();
        let mut bytes = 0;
        let mut live = live_max.saturating_sub(self.state.behind_by()).max(LIVE_KEYS_MIN);
        // One by one: the bytes of a write are bounded.
        while keys.len() < WRITE_KEYS_MAX && bytes < WRITE_BYTES_MAX {
            let waiting = self.state.waiting(live_before, live.min(1)).pop();
            live = live.saturating_sub(1);
            let Some(what) = waiting.or_else(|| self.state.behind(1).pop()) else { break };
            if let Some((version, write)) = self.write_of(what)? {
                bytes += write.value.len();
                keys.push((what, version));
                writes.push(write);
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        self.wrote_at = Instant::now();
        let through =
            ProjectionWatermark { position: self.state.covered(), term: self.state.term() };
        let (broker, fence, done) = (self.broker.clone(), self.bucket, self.done.clone());
        let how = self.config.writes();
        self.writing = true;
        tokio::spawn(async move {
            let end = broker.write_bucket(fence, through, writes, how).await;
            let _ = done.send(Done::Written(Written { keys, end })).await;
        });
        Ok(())
    }

    /// Handles the end of a write: memory can evict what the bucket has.
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

    /// When the next write may begin, if there are dirty keys.
    pub(crate) fn next_write(&self) -> Option<Instant> {
        if self.writing {
            return None;
        }
        let live = self.state.waits_since().map(|since| {
            let left_ms = since + LIVE_AFTER_MS + 1 - self.now();
            Instant::now() + Duration::from_millis(u64::try_from(left_ms).unwrap_or(0))
        });
        let next = if self.state.is_behind() { Some(self.wrote_at) } else { live };
        next.map(|next| next.max(self.write_again_at).max(self.wrote_at + WRITE_EVERY))
    }

    fn write_of(&self, what: DirtyKey) -> anyhow::Result<Option<(Position, Write)>> {
        match what {
            DirtyKey::Job(id) => {
                if let Some((version, json)) = self.state.spilled_json(id) {
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
            DirtyKey::Reply(key) => {
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
