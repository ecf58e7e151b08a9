//! What is kept: snapshots by period, and streams cut below what the older snapshot covers.
//!
//! Streams are trimmed by sequence, never by age: age would delete accepted commands while there is
//! no leader.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use job::Snapshot;
use mesh::{Broker, names, snapshot::SnapshotWatermark};
use serde::Deserialize;

use crate::leader::{Done, Leader};

/// Writing the state down takes at most one part in so many of the time.
const SNAPSHOT_SHARE: u32 = 2;
/// Bytes of a snapshot written a second, before they are compressed. A large one takes its share
/// of the cores and of the broker for longer instead of most of them for seconds.
const SNAPSHOT_BYTES_PER_S: f64 = 8e6;
/// Bytes written between two looks at the clock.
const PACE_BYTES: usize = 256_000;
/// The priority of the thread that writes the state down: the least.
const NICE: libc::c_int = 19;
/// Above this share of its size EVENTS keeps only what is needed.
const EVENTS_TIGHT: f64 = 0.5;
/// Above this share metrics loses its say, and with it the rows that it has not taken yet.
const EVENTS_FULL: f64 = 0.7;

/// How far metrics has taken EVENTS into ClickHouse: what it leaves in the bucket of leases.
#[derive(Deserialize)]
struct Place {
    next: u64,
}

impl Leader<'_> {
    /// Starts a snapshot where one is due, something changed, and none is under way.
    pub(crate) fn start_due_snapshot(&mut self) {
        let changed = self
            .reaches
            .last()
            .is_none_or(|reach| reach.events < self.last || reach.commands < self.state.through());
        let every = self.config.snapshot_every();
        // COMMANDS keeps the commands of two snapshots, and those that arrive while a third is
        // written.
        let full = self.folded_bytes >= self.config.commands_bytes() / 4;
        // What takes long is done rarely.
        let rarely = every.max(self.snapshot_took * SNAPSHOT_SHARE);
        let due = self.last_snapshot.elapsed() >= if full { every } else { rarely };
        if self.snapshotting && full {
            self.hurry.store(true, Ordering::Relaxed);
        }
        if !due || !changed || self.snapshotting {
            return;
        }
        self.snapshotting = true;
        self.last_snapshot = Instant::now();
        self.folded_bytes = 0;
        self.hurry = Arc::new(AtomicBool::new(full));
        let (reach, frozen) = self.snapshot();
        let (broker, done, hurry) = (self.broker.clone(), self.done.clone(), self.hurry.clone());
        tokio::spawn(async move {
            let end = broker.put_snapshot(reach, slowly(frozen, hurry)).await;
            let _ = done.send(Done::Snapshot(reach, end)).await;
        });
    }

    /// The current state, and its watermark.
    pub(crate) fn snapshot(&self) -> (SnapshotWatermark, Snapshot) {
        let reach = SnapshotWatermark { events: self.last, commands: self.state.through() };
        (reach, self.state.snapshot())
    }

    /// Takes in the end of a snapshot, and cuts the streams below the one before.
    pub(crate) fn snapshot_put(
        &mut self,
        reach: SnapshotWatermark,
        end: Result<(), mesh::snapshot::Error>,
    ) {
        self.snapshotting = false;
        self.snapshot_took = self.last_snapshot.elapsed();
        if let Err(error) = end {
            tracing::error!(error = %error, "snapshot not written, nothing is cut");
            return;
        }
        let duration_ms = u64::try_from(self.snapshot_took.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(events.last = reach.events, duration_ms, "snapshot written");
        self.reaches.push(reach);
        if self.reaches.len() > 2 {
            self.reaches.remove(0);
        }
        let [older, _] = self.reaches[..] else { return };
        let age_ms = i64::from(self.config.events_retention_s) * 1_000;
        let young = self.state.first_after(self.state.at() - age_ms);
        let broker = self.broker.clone();
        tokio::spawn(async move {
            if let Err(error) = cut(&broker, older, young).await {
                tracing::warn!(error = format!("{error:#}"), "streams not cut");
            }
        });
    }
}

/// Writes a snapshot while commands are processed, at a lower priority.
fn slowly(
    frozen: Snapshot,
    hurry: Arc<AtomicBool>,
) -> impl FnOnce(&mut dyn Write) -> io::Result<()> {
    move |to| {
        be_nice();
        frozen.write(&mut Paced { to, hurry, begun: Instant::now(), written: 0, looked_at: 0 })
    }
}

/// Keeps to [`SNAPSHOT_BYTES_PER_S`], until there is a hurry.
struct Paced<'a> {
    to: &'a mut dyn Write,
    hurry: Arc<AtomicBool>,
    begun: Instant,
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
                pause(due.saturating_sub(self.begun.elapsed()));
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

/// Trims COMMANDS and EVENTS below what `older` covers, but EVENTS not below a reader's position.
async fn cut(broker: &Broker, older: SnapshotWatermark, young: u64) -> anyhow::Result<()> {
    let commands = broker.js.get_stream_no_info(names::COMMANDS).await?;
    commands.purge().sequence(older.commands + 1).await?;
    let events = broker.js.get_stream(names::EVENTS).await?;
    let info = events.cached_info();
    let fill = info.state.bytes as f64 / info.config.max_bytes.max(1) as f64;
    let mut below = older.events + 1;
    if fill <= EVENTS_TIGHT {
        below = below.min(young);
    }
    let place = place(broker).await?;
    if fill <= EVENTS_FULL {
        below = below.min(place);
    } else if place < below {
        tracing::error!(
            from = place,
            to = below - 1,
            "EVENTS is full: rows for ClickHouse are lost"
        );
    }
    if below > info.state.first_sequence {
        events.purge().sequence(below).await?;
    }
    Ok(())
}

async fn place(broker: &Broker) -> anyhow::Result<u64> {
    let leases = broker.js.get_key_value(names::LEASES).await?;
    let place = leases.get(names::METRICS_PLACE).await?;
    let place = place.and_then(|place| serde_json::from_slice::<Place>(&place).ok());
    Ok(place.map_or(0, |place| place.next))
}
