//! The projection into the bucket `jobs`: terminal jobs at once, active jobs that do not change a
//! little later, one write at a time, each fenced. A job that changes again before its write is
//! written once, in its latest version.

use std::time::{Duration, Instant};

use job::{DirtyKey, Position, State, Status, time::Millis};
use nats::{
    bucket::{Fence, WRITE_KEYS_MAX, Write},
    names,
    publish::{self, LIMITS, WRONG_LAST_SEQUENCE},
    wire::ProjectionWatermark,
};

use super::{
    core::{Core, instant_of},
    pressure::{Pressure, Room},
    step_down::StepDown,
};

/// The most bytes of one write.
const WRITE_BYTES_MAX: usize = 8_000_000;

/// How long a few changes wait for more: the broker pays for each batch, and a job that is
/// queued, run and done meanwhile is written once. Memory answers for it until then.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How long after its change a live job is written, in ms.
const LIVE_AFTER_MS: Millis = 2_000;
/// Live jobs of one write: 2,000 a second if nothing else is written.
const LIVE_KEYS_MAX: usize = 100;
/// Live jobs of a write that has much else to write.
const LIVE_KEYS_MIN: usize = 10;
/// How often the room of the bucket is read.
const READ_ROOM_EVERY: Duration = Duration::from_secs(1);
/// What a key takes in the bucket in addition to its value, in bytes.
const KEY_BYTES: usize = 150;
/// How long a full bucket is left alone: what ended long ago leaves it meanwhile.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// A write to make.
pub(super) struct BucketWrite {
    pub fence: Fence,
    pub watermark: ProjectionWatermark,
    pub writes: Vec<Write>,
    pub keys: Vec<(DirtyKey, Position)>,
}

/// A write that was made: its keys with their versions.
pub(super) struct Written {
    pub keys: Vec<(DirtyKey, Position)>,
    pub result: Result<Fence, publish::Error>,
}

/// Writes the bucket `jobs`, one write at a time.
pub(super) struct Projection {
    fence: Fence,
    is_writing: bool,
    /// When the last write started.
    wrote_at: Instant,
    /// When a bucket that was full is written again.
    resume_at: Instant,
    pressure: Pressure,
    /// When the room of the bucket is read next; `None` while it is being read.
    read_room_at: Option<Instant>,
}

impl Projection {
    pub fn new(fence: Fence) -> Self {
        let now = Instant::now();
        let pressure = Pressure::new(now);
        let read_room_at = Some(now);
        Self { fence, is_writing: false, wrote_at: now, resume_at: now, pressure, read_room_at }
    }

    /// The write to make now, if there are dirty keys and no write is in progress.
    pub fn due(&mut self, core: &mut Core) -> anyhow::Result<Option<BucketWrite>> {
        let now = Instant::now();
        let few = core.state.behind_by() < WRITE_KEYS_MAX;
        let waits = few && now < self.wrote_at + WRITE_EVERY;
        if self.is_writing || waits || now < self.resume_at {
            return Ok(None);
        }
        let live_before = core.now() - LIVE_AFTER_MS;
        self.next_write(&mut core.state, live_before, LIVE_KEYS_MAX)
    }

    /// The next write of a leader that stops since `stopping_at`: active jobs too, so that clients find
    /// them while there is no leader. `None` if all is written, or if the bucket was found full since.
    pub fn flush(
        &mut self,
        core: &mut Core,
        stopping_at: Instant,
    ) -> anyhow::Result<Option<BucketWrite>> {
        if self.is_writing || self.resume_at > stopping_at + FULL_PAUSE {
            return Ok(None);
        }
        self.next_write(&mut core.state, Millis::MAX, WRITE_KEYS_MAX)
    }

    /// True if it is time to read the room of the bucket.
    pub fn must_read_room(&mut self) -> bool {
        self.read_room_at.take_if(|at| *at <= Instant::now()).is_some()
    }

    /// Receives the room of the bucket, if it could be read.
    pub fn read_room(&mut self, room: Option<Room>) {
        let now = Instant::now();
        if let Some(room) = room {
            self.pressure.read(now, room);
        }
        self.read_room_at = Some(now + READ_ROOM_EVERY);
    }

    /// True while a write is in progress.
    pub fn is_writing(&self) -> bool {
        self.is_writing
    }

    /// A write of terminal jobs and of active jobs that changed before `live_before`, up to `live_max`
    /// of them if there are few others.
    fn next_write(
        &mut self,
        state: &mut State,
        live_before: Millis,
        live_max: usize,
    ) -> anyhow::Result<Option<BucketWrite>> {
        let mut keys = Vec::new();
        let mut writes = Vec::new();
        let mut bytes = 0;
        let mut live = live_max.saturating_sub(state.behind_by()).max(LIVE_KEYS_MIN);
        // One by one: the bytes of a write are bounded.
        while keys.len() < WRITE_KEYS_MAX && bytes < WRITE_BYTES_MAX {
            let waiting = state.waiting(live_before, live.min(1)).pop();
            live = live.saturating_sub(1);
            let Some(key) = waiting.or_else(|| state.behind(1).pop()) else { break };
            if let Some((version, write)) = write_of(state, &self.pressure, key)? {
                bytes += write.value.len();
                if write.ttl.is_some() {
                    self.pressure.written(write.value.len() + KEY_BYTES);
                }
                keys.push((key, version));
                writes.push(write);
            }
        }
        if keys.is_empty() {
            return Ok(None);
        }
        self.wrote_at = Instant::now();
        self.is_writing = true;
        let watermark = ProjectionWatermark { position: state.covered(), term: state.term() };
        Ok(Some(BucketWrite { fence: self.fence, watermark, writes, keys }))
    }

    /// Receives the result of a write: memory can evict what the bucket has.
    ///
    /// # Errors
    /// If another leader writes the bucket, or if the write may have been made or not.
    pub fn done(&mut self, core: &mut Core, written: Written) -> Result<(), StepDown> {
        self.is_writing = false;
        self.fence = match written.result {
            Ok(fence) => fence,
            Err(error) if error.is(WRONG_LAST_SEQUENCE) => return Err(StepDown::WriteRefused),
            Err(error) if error.is(LIMITS) => {
                tracing::error!(error = %error, "the bucket of jobs is full: status falls behind");
                self.resume_at = Instant::now() + FULL_PAUSE;
                core.state.settle(self.fence.through.position);
                return Ok(());
            }
            // The start reads how far the bucket is.
            Err(error) => return Err(unknown(error)),
        };
        for (key, version) in written.keys {
            core.state.stored(key, version);
        }
        Ok(())
    }

    /// When the next write is due, if there are dirty keys and no write is in progress.
    pub fn deadline(&self, core: &Core) -> Option<Instant> {
        if self.is_writing {
            return None;
        }
        let live = core.state.waits_since();
        let live = live.map(|since| instant_of(since + LIVE_AFTER_MS + 1, core.now()));
        let next = if core.state.is_behind() { Some(self.wrote_at) } else { live };
        next.map(|next| next.max(self.resume_at).max(self.wrote_at + WRITE_EVERY))
    }
}

fn unknown(error: publish::Error) -> StepDown {
    StepDown::Failed(anyhow::Error::from(error).context("the bucket could not be written"))
}

/// The current version of a key, and its write; `None` if memory has evicted it.
fn write_of(
    state: &State,
    pressure: &Pressure,
    key: DirtyKey,
) -> anyhow::Result<Option<(Position, Write)>> {
    match key {
        DirtyKey::Job(id) => {
            if let Some((version, json)) = state.spilled_json(id) {
                let write = Write { key: id.to_string(), value: json.into(), ttl: None };
                return Ok(Some((version, write)));
            }
            let Some(job) = state.job(id) else { return Ok(None) };
            let retention_ms = u64::try_from(state.retention_of(&job));
            let retention = Duration::from_millis(retention_ms.unwrap_or(0));
            let retention = pressure.retention(retention, job.status == Status::Failed);
            let write = Write {
                key: id.to_string(),
                value: serde_json::to_vec(&job)?.into(),
                ttl: job.status.is_terminal().then_some(retention),
            };
            Ok(Some((job.version, write)))
        }
        DirtyKey::Reply(key) => {
            let Some(answer) = state.answer(key) else { return Ok(None) };
            // A project may keep its jobs longer; a repeat must find its answer for as long.
            let retention_ms = state.longest_retention_ms();
            let retention = Duration::from_millis(u64::try_from(retention_ms).unwrap_or(0));
            let retention = pressure.record_retention(retention);
            let write = Write {
                key: names::answer_key(key),
                value: serde_json::to_vec(answer)?.into(),
                ttl: Some(retention),
            };
            Ok(Some((Position::default(), write)))
        }
    }
}

#[cfg(test)]
mod tests {
    use job::{
        Config, JobId, Lookups,
        command::{Cancel, Command, Enqueue, NewJob},
    };

    use nats::run_tokens::RunTokens;

    use super::*;
    use crate::clock::Clock;

    /// A leader whose jobs are canceled: each is a dirty key.
    fn core(jobs: u128) -> Core {
        let tokens = RunTokens::new("key", 0);
        let mut core = Core::new(State::new(1_000), Config::default(), Clock::start(), tokens);
        let job = |n| NewJob::new(JobId::from_u128(n), format!("{n}").into());
        let enqueue = Enqueue::new("p".into(), (1..=jobs).map(job).collect());
        let cancel = Cancel { project: "p".into(), batches: None, idempotency: None };
        let mut transaction = core.begin();
        for (index, command) in
            [Command::Enqueue(enqueue), Command::Cancel(cancel)].iter().enumerate()
        {
            transaction.process(index, command, None, &Lookups::default()).expect("all is known");
        }
        while transaction.advance_bulk(&Lookups::default()).expect("all is known").is_some() {}
        transaction.end_message(1, None);
        let commit = transaction.commit();
        commit.finish(&mut core.state, &mut core.scheduler);
        core
    }

    fn fence(revision: u64) -> Fence {
        let through = ProjectionWatermark { position: Position::default(), term: 1 };
        Fence { revision, through, last: None }
    }

    fn refused(code: u64) -> publish::Error {
        let subject = "$KV.jobs._through".into();
        publish::Error::Refused { subject, code, description: "refused".into() }
    }

    #[test]
    fn one_write_is_in_progress_and_evicts_what_it_has_stored() {
        let (mut core, mut projection) = (core(3), Projection::new(fence(1)));
        let write = projection
            .flush(&mut core, Instant::now())
            .expect("jobs are JSON")
            .expect("keys are dirty");
        assert_eq!((write.keys.len(), write.fence), (3, fence(1)));
        assert!(projection.flush(&mut core, Instant::now()).expect("jobs are JSON").is_none());
        assert!(projection.deadline(&core).is_none() && core.state.has(JobId::from_u128(1)));
        let written = Written { keys: write.keys, result: Ok(fence(2)) };
        projection.done(&mut core, written).expect("it leads");
        assert!(!core.state.has(JobId::from_u128(1)) && !core.state.is_behind());
        assert!(projection.flush(&mut core, Instant::now()).expect("jobs are JSON").is_none());
    }

    #[test]
    fn full_bucket_is_written_again_after_a_pause() {
        let (mut core, mut projection) = (core(3), Projection::new(fence(1)));
        let write = projection
            .flush(&mut core, Instant::now())
            .expect("jobs are JSON")
            .expect("keys are dirty");
        let before = Instant::now();
        let written = Written { keys: write.keys, result: Err(refused(LIMITS)) };
        projection.done(&mut core, written).expect("it leads");
        assert!(core.state.has(JobId::from_u128(1)), "memory keeps what the bucket does not have");
        assert!(projection.deadline(&core).expect("keys are dirty") >= before + FULL_PAUSE);
    }

    #[test]
    fn moved_fence_ends_leading() {
        let (mut core, mut projection) = (core(1), Projection::new(fence(1)));
        let result = Err(refused(WRONG_LAST_SEQUENCE));
        let result = projection.done(&mut core, Written { keys: Vec::new(), result });
        assert!(matches!(result, Err(StepDown::WriteRefused)));
    }
}
