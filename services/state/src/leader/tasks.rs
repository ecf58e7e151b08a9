//! The leader's tasks in the background. They end with it, except for a snapshot that is being written.

use std::time::Duration;

use job::{Lookups, Missing, time::Millis};
use nats::{
    Broker, names,
    publish::{self, Writes},
    snapshot::SnapshotWatermark,
    work_queue,
};
use service::BackgroundTask;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    dispatcher::{Dispatch, Sent},
    lookups,
    pressure::Room,
    projection::{BucketWrite, Written},
    reconciler::{Reading, ReadingRequest},
    snapshotter::PlannedSnapshot,
    stream_trimmer::{self, Trim},
    time_barrier::CommandsEnd,
};

/// Trims COMMANDS and EVENTS below what snapshots cover.
pub(super) const TRIMMING: BackgroundTask = BackgroundTask::new("trimming");
/// How long to wait after jobs of a bulk operation could not be read.
const BULK_READ_PAUSE: Duration = Duration::from_millis(500);

/// The result of a task.
pub(super) enum Done {
    /// A write of the bucket.
    Written(Written),
    /// The room of the bucket; `None` if it could not be read.
    Room(Option<Room>),
    /// The end of COMMANDS; `None` if it could not be read.
    CommandsEnd(Option<CommandsEnd>),
    /// A dispatch.
    Dispatched(Sent, Result<publish::Ack, publish::Error>),
    /// What a slice of a bulk operation needs.
    BulkRead(Lookups),
    /// A reading of the work streams.
    Read(Result<Reading, work_queue::Error>),
    /// A snapshot.
    Snapshot(SnapshotWatermark, Result<(), nats::snapshot::Error>),
    /// The streams are trimmed, or will be after the next snapshot.
    Trimmed(anyhow::Result<()>),
}

/// Makes the writes and reads that the components request.
pub(super) struct Tasks {
    broker: Broker,
    writes: Writes,
    running: JoinSet<Done>,
}

impl Tasks {
    pub fn new(broker: Broker, writes: Writes) -> Self {
        Self { broker, writes, running: JoinSet::new() }
    }

    /// The next result; `None` if no task is running. Cancel safe.
    ///
    /// # Errors
    /// If a task panicked.
    pub async fn next(&mut self) -> Option<anyhow::Result<Done>> {
        Some(self.running.join_next().await?.map_err(anyhow::Error::from))
    }

    pub fn write(&mut self, write: BucketWrite) {
        let (broker, how) = (self.broker.clone(), self.writes);
        self.running.spawn(async move {
            let BucketWrite { fence, watermark, writes, keys } = write;
            let result = broker.write_bucket(fence, watermark, writes, how).await;
            Done::Written(Written { keys, result })
        });
    }

    pub fn read_room(&mut self, now: Millis) {
        let broker = self.broker.clone();
        self.running.spawn(async move { Done::Room(room(&broker, now).await) });
    }

    pub fn read_commands_end(&mut self, at: Millis) {
        let broker = self.broker.clone();
        self.running.spawn(async move {
            let last = broker.last_sequence(names::COMMANDS).await;
            Done::CommandsEnd(last.ok().map(|last| CommandsEnd { at, last }))
        });
    }

    pub fn check_commands_end(&mut self, end: CommandsEnd) {
        let broker = self.broker.clone();
        self.running.spawn(async move {
            let there = broker.last_there(names::COMMANDS, names::COMMAND_SUBJECTS).await;
            let last = |there: u64| CommandsEnd { last: end.last.min(there), ..end };
            Done::CommandsEnd(there.ok().map(last))
        });
    }

    pub fn dispatch(&mut self, dispatch: Dispatch) {
        let (broker, writes) = (self.broker.clone(), self.writes);
        self.running.spawn(async move {
            let Dispatch { priority_class: class, fence, messages } = dispatch;
            let sent = Sent { priority_class: class, runs: messages.len() as u64 };
            Done::Dispatched(sent, broker.dispatch(class, fence, messages, writes).await)
        });
    }

    /// Reads until it succeeds: only the operation waits for a bucket that cannot be read.
    pub fn read_for_bulk(&mut self, missing: Missing) {
        let broker = self.broker.clone();
        self.running.spawn(async move {
            // The task ends with the leader's.
            let never = CancellationToken::new();
            let what = "jobs not read for a bulk operation";
            let read = || async {
                let mut lookups = Lookups::default();
                lookups::read(&broker, missing.clone(), &mut lookups).await.map(|()| lookups)
            };
            let read = service::retry_until(&never, BULK_READ_PAUSE, what, read).await;
            Done::BulkRead(read.unwrap_or_default())
        });
    }

    pub fn read_streams(&mut self, request: ReadingRequest) {
        let broker = self.broker.clone();
        self.running.spawn(async move { Done::Read(request.make(&broker).await) });
    }

    /// Writes a snapshot to its end, even if the leader stops before: nothing deletes a partial one.
    pub fn write_snapshot(&mut self, snapshot: PlannedSnapshot) {
        let broker = self.broker.clone();
        let writing = tokio::spawn(async move { snapshot.write(&broker).await });
        self.running.spawn(async move {
            let (watermark, result) = writing.await.expect("writing a snapshot does not panic");
            Done::Snapshot(watermark, result)
        });
    }

    pub fn trim(&mut self, trim: Trim) {
        let broker = self.broker.clone();
        self.running.spawn(async move { Done::Trimmed(stream_trimmer::trim(&broker, trim).await) });
    }
}

/// The room of the bucket, and how far metrics is behind. A checkpoint that cannot be read does not count.
async fn room(broker: &Broker, now: Millis) -> Option<Room> {
    let (used, max) = broker.room(names::JOBS_STREAM).await?;
    let checkpoint = stream_trimmer::metrics_checkpoint(broker).await.ok().flatten();
    let last = broker.last_sequence(names::EVENTS).await.ok()?;
    let behind = checkpoint.filter(|it| it.next <= last && it.at > 0).map_or(0, |it| now - it.at);
    let behind = Duration::from_millis(u64::try_from(behind).unwrap_or(0));
    Some(Room { used, max, behind })
}
