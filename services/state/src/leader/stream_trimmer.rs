//! Trims COMMANDS and EVENTS below what a snapshot covers.
//!
//! Streams are trimmed by sequence, never by age: age would delete accepted commands while there is
//! no leader.

use nats::{Broker, checkpoint::Checkpoint, names, snapshot::SnapshotWatermark};

/// Above this share of its size EVENTS has only what is needed.
const EVENTS_TIGHT: f64 = 0.5;
/// Above this share metrics is not waited for, and the rows that it has not written yet are lost.
const EVENTS_FULL: f64 = 0.7;

/// What can be trimmed.
pub(super) struct Trim {
    /// The older of the two snapshots that are kept.
    pub older: SnapshotWatermark,
    /// The first message of EVENTS that is younger than the retention of events.
    pub young: u64,
}

/// Trims COMMANDS and EVENTS below what the older snapshot covers, but EVENTS not below the position
/// of metrics.
pub(super) async fn trim(broker: &Broker, trim: Trim) -> anyhow::Result<()> {
    let Trim { older, young } = trim;
    let commands = broker.js.get_stream_no_info(names::COMMANDS).await?;
    commands.purge().sequence(older.commands + 1).await?;
    let events = broker.js.get_stream(names::EVENTS).await?;
    let info = events.cached_info();
    let fill = info.state.bytes as f64 / info.config.max_bytes.max(1) as f64;
    let mut below = older.events + 1;
    if fill <= EVENTS_TIGHT {
        below = below.min(young);
    }
    let metrics = metrics_position(broker).await?;
    if fill <= EVENTS_FULL {
        below = below.min(metrics);
    } else if metrics < below {
        tracing::error!(
            from = metrics,
            to = below - 1,
            "EVENTS is full: rows for ClickHouse are lost"
        );
    }
    if below > info.state.first_sequence {
        events.purge().sequence(below).await?;
    }
    Ok(())
}

async fn metrics_position(broker: &Broker) -> anyhow::Result<u64> {
    Ok(metrics_checkpoint(broker).await?.map_or(0, |checkpoint| checkpoint.next))
}

/// How far metrics is, if it says so.
pub(super) async fn metrics_checkpoint(broker: &Broker) -> anyhow::Result<Option<Checkpoint>> {
    let leases = broker.js.get_key_value(names::LEASES).await?;
    let checkpoint = leases.get(names::METRICS_CHECKPOINT).await?;
    Ok(checkpoint.and_then(|it| serde_json::from_slice(&it).ok()))
}
