//! Snapshots at intervals, so that a start has little to replay and the streams can be trimmed.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use job::{Snapshot, State};
use nats::{Broker, snapshot::SnapshotWatermark};

use super::stream_trimmer::Trim;
use crate::{Config, measurements};

/// Writing a snapshot takes at most one part in this many of the time.
const SNAPSHOT_SHARE: u32 = 2;
/// Bytes of a snapshot written a second, before they are compressed. A large one takes its share
/// of the cores and of the broker for longer instead of most of them for seconds.
const SNAPSHOT_BYTES_PER_S: f64 = 8e6;
/// Bytes written between two looks at the clock.
const PACE_BYTES: usize = 256_000;
/// The priority of the thread that writes a snapshot: the lowest.
const NICE: libc::c_int = 19;

/// A snapshot to write.
pub(super) struct PlannedSnapshot {
    watermark: SnapshotWatermark,
    snapshot: Snapshot,
    hurry: Arc<AtomicBool>,
}

impl PlannedSnapshot {
    /// Writes it while commands are processed, at a lower priority.
    pub async fn write(
        self,
        broker: &Broker,
    ) -> (SnapshotWatermark, Result<(), nats::snapshot::Error>) {
        let Self { watermark, snapshot, hurry } = self;
        (watermark, broker.put_snapshot(watermark, slowly(snapshot, hurry)).await)
    }

    /// Writes it at full speed.
    pub async fn write_now(
        self,
        broker: &Broker,
    ) -> Result<SnapshotWatermark, nats::snapshot::Error> {
        let Self { watermark, snapshot, .. } = self;
        broker.put_snapshot(watermark, move |to| snapshot.write(to)).await?;
        Ok(watermark)
    }
}

/// Decides when a snapshot is due, one at a time.
pub(super) struct Snapshotter {
    every: Duration,
    commands_bytes: u64,
    events_retention_ms: i64,
    /// The snapshots that are kept, oldest first.
    kept: Vec<SnapshotWatermark>,
    started_at: Instant,
    /// How long the last snapshot took.
    took: Duration,
    is_writing: bool,
    /// Whether the snapshot in progress takes no pauses.
    hurry: Arc<AtomicBool>,
    /// Bytes of commands processed since the last snapshot started.
    processed_bytes: u64,
}

impl Snapshotter {
    /// `commands_bytes` is the size of COMMANDS.
    pub fn new(config: &Config, kept: Vec<SnapshotWatermark>, commands_bytes: u64) -> Self {
        Self {
            every: config.snapshot_every(),
            commands_bytes,
            events_retention_ms: i64::from(config.events_retention_s) * 1_000,
            kept,
            started_at: Instant::now(),
            took: Duration::ZERO,
            is_writing: false,
            hurry: Arc::default(),
            processed_bytes: 0,
        }
    }

    /// Counts commands that were processed.
    pub fn processed(&mut self, bytes: usize) {
        self.processed_bytes += bytes as u64;
    }

    /// The snapshot to write now, if something changed and none is in progress.
    pub fn due(&mut self, state: &State) -> Option<PlannedSnapshot> {
        let now = watermark(state);
        let is_changed = self
            .kept
            .last()
            .is_none_or(|kept| kept.events < now.events || kept.commands < now.commands);
        // COMMANDS has room for the commands of two snapshots, and for those that arrive while a
        // third is written.
        let is_full = self.processed_bytes >= self.commands_bytes / 4;
        if self.is_writing && is_full {
            self.hurry.store(true, Ordering::Relaxed);
        }
        // A snapshot that takes long is written rarely.
        let rarely = self.every.max(self.took * SNAPSHOT_SHARE);
        let is_due = self.started_at.elapsed() >= if is_full { self.every } else { rarely };
        if !is_due || !is_changed || self.is_writing {
            return None;
        }
        self.is_writing = true;
        self.started_at = Instant::now();
        self.processed_bytes = 0;
        self.hurry = Arc::new(AtomicBool::new(is_full));
        Some(PlannedSnapshot { hurry: self.hurry.clone(), ..snapshot(state) })
    }

    /// True while a snapshot is written.
    pub fn is_writing(&self) -> bool {
        self.is_writing
    }

    /// The snapshot in progress takes no pauses from here on.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// Receives the result of a snapshot. Returns what can be trimmed: the streams below the snapshot
    /// before it.
    pub fn done(
        &mut self,
        state: &State,
        written: SnapshotWatermark,
        result: Result<(), nats::snapshot::Error>,
    ) -> Option<Trim> {
        self.is_writing = false;
        self.took = self.started_at.elapsed();
        if let Err(error) = result {
            tracing::error!(error = %error, "snapshot not written, nothing is trimmed");
            return None;
        }
        measurements::snapshot(self.took);
        let duration_ms = super::core::millis(self.took);
        tracing::debug!(events.last = written.events, duration_ms, "snapshot written");
        self.kept.push(written);
        // After a crash between a snapshot and the deletion of an older one, there may be more.
        while self.kept.len() > 2 {
            self.kept.remove(0);
        }
        let [older, _] = self.kept[..] else { return None };
        let young = state.first_after(state.at() - self.events_retention_ms);
        Some(Trim { older, young })
    }
}

/// The snapshot of the current state. No transaction may be open.
pub(super) fn snapshot(state: &State) -> PlannedSnapshot {
    let (watermark, snapshot) = (watermark(state), state.snapshot());
    PlannedSnapshot { watermark, snapshot, hurry: Arc::default() }
}

fn watermark(state: &State) -> SnapshotWatermark {
    SnapshotWatermark { events: state.position().sequence, commands: state.through() }
}

/// Writes a snapshot while commands are processed, at a lower priority.
fn slowly(
    frozen: Snapshot,
    hurry: Arc<AtomicBool>,
) -> impl FnOnce(&mut dyn Write) -> io::Result<()> {
    move |to| {
        be_nice();
        frozen.write(&mut Paced { to, hurry, started: Instant::now(), written: 0, looked_at: 0 })
    }
}

/// Keeps to [`SNAPSHOT_BYTES_PER_S`], until there is a hurry.
struct Paced<'a> {
    to: &'a mut dyn Write,
    hurry: Arc<AtomicBool>,
    started: Instant,
    written: usize,
    looked_at: usize,
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.written += written;
        if self.written - self.looked_at >= PACE_BYTES {
            self.looked_at = self.written;
            let due = Duration::from_secs_f64(self.written as f64 / SNAPSHOT_BYTES_PER_S);
            if !self.hurry.load(Ordering::Relaxed) {
                pause(due.saturating_sub(self.started.elapsed()));
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread is its own, and a pace is its purpose")]
fn pause(time: Duration) {
    thread::sleep(time);
}

/// Lets every other thread go before this one, which ends with what it does.
fn be_nice() {
    // SAFETY: takes numbers and touches no memory; 0 is the calling thread.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if set != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "a thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshotter(every: Duration) -> Snapshotter {
        Snapshotter {
            every,
            commands_bytes: 4_000,
            events_retention_ms: 1_000,
            kept: Vec::new(),
            started_at: Instant::now(),
            took: Duration::ZERO,
            is_writing: false,
            hurry: Arc::default(),
            processed_bytes: 0,
        }
    }

    fn changed(message: u64) -> State {
        let mut state = State::new(1_000);
        state.skip_message(message);
        state
    }

    #[test]
    fn changes_are_written_and_the_streams_trimmed_below_the_snapshot_before() {
        let mut snapshotter = snapshotter(Duration::ZERO);
        let first = changed(1);
        assert!(snapshotter.due(&first).is_some());
        assert!(snapshotter.due(&first).is_none(), "one is in progress");
        assert!(snapshotter.done(&first, watermark(&first), Ok(())).is_none());
        assert!(snapshotter.due(&first).is_none(), "nothing changed");
        snapshotter.took = Duration::ZERO;
        snapshotter.kept.extend([watermark(&first); 2]);
        let second = changed(2);
        assert!(snapshotter.due(&second).is_some());
        let trim = snapshotter.done(&second, watermark(&second), Ok(()));
        assert_eq!(trim.map(|trim| trim.older.events), Some(1));
    }

    #[test]
    fn snapshot_that_takes_long_is_written_rarely_unless_commands_fill_their_stream() {
        let mut snapshotter = snapshotter(Duration::ZERO);
        snapshotter.took = Duration::from_secs(3_600);
        assert!(snapshotter.due(&changed(1)).is_none());
        snapshotter.processed(1_000);
        let planned = snapshotter.due(&changed(1)).expect("it is due");
        assert!(planned.hurry.load(Ordering::Relaxed));
    }
}
