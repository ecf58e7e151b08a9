//! Transactions and scheduler on a simulated clock, by seed: random projects, limits, failures, crashes
//! of leaders and processors, lost and repeated messages.
//!
//! Limits are never exceeded, no slot stays free while a job may run, no project starves, every job
//! becomes terminal, and every end of a job is delivered once. A failing seed is printed;
//! `JOBMESH_SIMULATION_SEED=<seed>` replays it alone, `JOBMESH_SIMULATION_SEEDS=<count>` sets how
//! many run.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod clients;
mod leader;
mod oracle;
mod processors;
mod random;
mod world;

use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU64, Ordering},
};

use world::World;

/// The number of seeds by default.
const SEEDS: u64 = 10_000;
/// Steps of one world before it is healed.
const STEPS: usize = 120;
/// By how much a permit may come back late.
const PERMIT_STEP_MS: i64 = 100;

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.heal();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn limits_hold_and_no_project_starves_despite_crashes() {
    if let Some(seed) = number("JOBMESH_SIMULATION_SEED") {
        return run(seed);
    }
    let seeds = number("JOBMESH_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || failed.load(Ordering::Relaxed) != u64::MAX {
                        return;
                    }
                    if std::panic::catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed == u64::MAX, "replay with JOBMESH_SIMULATION_SEED={failed}");
}
