//! How Jobmesh compares with other queues.

use super::{
    DRAIN_JOBS, Ours, SLOTS,
    mesh::Durability,
    peers::{Peer, Peers},
    report::{Goal, Report},
};

/// `1 slot`, `8 slots`.
pub fn of_slots(slots: usize) -> String {
    format!("{slots} slot{}", if slots == 1 { "" } else { "s" })
}

/// Measures the peers, and says how they compare.
pub fn compare(
    ours: &Ours,
    peers: Option<&Peers>,
    how: Durability,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(peers) = peers else { return Ok(()) };
    match peers.graphile(how, DRAIN_JOBS)? {
        None => report.missing("graphile-worker was not measured: PostgreSQL is missing"),
        Some(peer) => say(report, "graphile-worker", &peer),
    }
    let Some(peer) = peers.bullmq(how, DRAIN_JOBS)? else {
        report.missing("BullMQ was not measured: redis-server is missing");
        return Ok(());
    };
    say(report, "BullMQ", &peer);
    for (n, (slots, _)) in SLOTS.into_iter().enumerate() {
        let (ours, peer) = (ours.slots.get(n).copied(), peer.slots.get(n).copied());
        let what = format!("drain against BullMQ's, {}", of_slots(slots));
        report.ratio(&what, ours, peer, 1.2);
    }
    match how {
        Durability::Fast => {
            report.ratio("bulk enqueue against BullMQ's", ours.bulk, Some(peer.add_bulk), 5.0);
            let what = "enqueue one by one, 64 callers, over HTTP, against BullMQ's in process";
            report.ratio(what, ours.single, Some(peer.add), 1.2);
            report.ratio("drain against BullMQ's", ours.drain, Some(peer.drain), 2.0);
            report.ratio("whole life against BullMQ's", ours.life, Some(peer.life()), 2.2);
            if let Some(times) = &ours.pickup {
                let goal = Goal::AtMost(peer.pickup.quantile(0.5));
                report.ms("pickup, p50, below BullMQ's", times.quantile(0.5), Some(goal));
            }
        }
        Durability::Always => {
            report.ratio("drain against BullMQ's", ours.drain, Some(peer.drain), 1.8);
            report.ratio("whole life against BullMQ's", ours.life, Some(peer.life()), 2.0);
        }
    }
    Ok(())
}

fn say(report: &mut Report, name: &str, peer: &Peer) {
    report.rate(&format!("{name}: enqueue, in bulk of 1,000"), peer.add_bulk);
    report.rate(&format!("{name}: drain"), peer.drain);
    for ((slots, _), rate) in SLOTS.iter().zip(&peer.slots) {
        report.rate(&format!("{name}: drain, {}, median of three", of_slots(*slots)), *rate);
    }
    report.rate(&format!("{name}: enqueue in bulk, then drain"), peer.life());
    report.rate(&format!("{name}: enqueue one by one, 64 callers, in process"), peer.add);
    report.latency(&format!("{name}: pickup"), &peer.pickup, [None; 2]);
}
