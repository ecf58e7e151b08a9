//! What the state service measures.

use std::time::{Duration, Instant};

use job::{Demand, PriorityClass, State, time::Millis};
use nats::heartbeat::WorkerRegistry;
use service::prometheus::{
    Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

const LEADING: &str = "jobmesh_state_leading";
const TERM: &str = "jobmesh_state_term";
const JOBS: &str = "jobmesh_jobs";
const SCHEDULED: &str = "jobmesh_scheduled_jobs";
const ENDED: &str = "jobmesh_ended_jobs";
const IN_FLIGHT: &str = "jobmesh_in_flight_runs";
const PROCESSORS: &str = "jobmesh_processors";
const SLOTS: &str = "jobmesh_slots";
const READY: &str = "jobmesh_ready_runs";
const OLDEST_READY: &str = "jobmesh_oldest_ready_seconds";
const PROJECTS: &str = "jobmesh_projects";
const SETTINGS: &str = "jobmesh_settings_bytes";
const COMMANDS: &str = "jobmesh_commands_total";
const APPENDS: &str = "jobmesh_event_append_seconds";
const LOST: &str = "jobmesh_lost_runs_total";
const EXPIRED: &str = "jobmesh_expired_jobs_total";
const DISPATCHED: &str = "jobmesh_dispatched_runs_total";
const SNAPSHOT: &str = "jobmesh_snapshot_seconds";
const STEP_DOWNS: &str = "jobmesh_state_step_downs_total";

/// Gives each measurement its unit and help.
pub(crate) fn describe() {
    describe_gauge!(
        LEADING,
        "1 if this replica leads. Only the leader counts jobs, runs and processors; the others have 0."
    );
    describe_gauge!(TERM, "How many leaders there have been.");
    describe_gauge!(JOBS, "Queued and running jobs, by status and class.");
    describe_gauge!(SCHEDULED, "Queued jobs that wait for their time.");
    describe_gauge!(ENDED, "Jobs that ended so far and were not retried, by status.");
    describe_gauge!(IN_FLIGHT, "Runs that are dispatched and have not ended.");
    describe_gauge!(PROCESSORS, "Processors that are online and take the jobs of clients.");
    describe_gauge!(SLOTS, "Jobs that these processors run at once.");
    describe_gauge!(
        READY,
        "Queued jobs that could start now, within the limits of their projects, if slots were free."
    );
    describe_gauge!(
        OLDEST_READY,
        Unit::Seconds,
        "How long the oldest of these jobs has been queued, by class."
    );
    describe_gauge!(PROJECTS, "Projects that have jobs, settings or schedules.");
    describe_gauge!(
        SETTINGS,
        Unit::Bytes,
        "The settings and schedules of all projects, as JOBMESH_SETTINGS_MB counts them."
    );
    describe_counter!(COMMANDS, "Messages of COMMANDS that were processed.");
    describe_histogram!(
        APPENDS,
        Unit::Seconds,
        "How long an append to EVENTS took, disk included."
    );
    describe_counter!(LOST, "Runs that were queued again because their processor went offline.");
    describe_counter!(EXPIRED, "Jobs that were canceled because they had waited for too long.");
    describe_counter!(DISPATCHED, "Runs that were handed to the streams of ready work.");
    describe_histogram!(SNAPSHOT, Unit::Seconds, "How long a snapshot took.");
    describe_counter!(STEP_DOWNS, "How often this replica stopped leading because of an error.");
    gauge!(LEADING).set(0.0);
    counter!(STEP_DOWNS).absolute(0);
    counter!(LOST).absolute(0);
    counter!(EXPIRED).absolute(0);
}

/// How long appends to EVENTS take.
pub(crate) fn appends() -> Histogram {
    histogram!(APPENDS)
}

/// Counts messages of COMMANDS that are processed.
pub(crate) fn commands(messages: usize) {
    counter!(COMMANDS).increment(messages as u64);
}

/// Counts a run whose processor went offline.
pub(crate) fn lost_run() {
    counter!(LOST).increment(1);
}

/// Counts jobs that expired.
pub(crate) fn expired(jobs: usize) {
    counter!(EXPIRED).increment(jobs as u64);
}

/// Counts runs that were dispatched.
pub(crate) fn dispatched(runs: u64) {
    counter!(DISPATCHED).increment(runs);
}

/// Records how long a snapshot took.
pub(crate) fn snapshot(took: Duration) {
    histogram!(SNAPSHOT).record(took);
}

/// Records what the leader knows.
pub(crate) fn observe(
    state: &State,
    demand: &Demand,
    at: Millis,
    in_flight: usize,
    workers: &WorkerRegistry,
) {
    let now = Instant::now();
    let counts = state.counts(None);
    gauge!(LEADING).set(1.0);
    gauge!(TERM).set(state.term() as f64);
    for class in PriorityClass::ALL {
        let (queued, processing) = (counts.queued[class], counts.processing[class]);
        let name = class.name();
        gauge!(JOBS, "status" => "queued", "class" => name).set(queued as f64);
        gauge!(JOBS, "status" => "processing", "class" => name).set(processing as f64);
    }
    gauge!(READY).set(demand.ready as f64);
    for (class, oldest) in demand.oldest.into_entries() {
        let age_ms = oldest.map_or(0, |oldest| (at - oldest).max(0));
        gauge!(OLDEST_READY, "class" => class.name()).set(age_ms as f64 / 1_000.0);
    }
    gauge!(SCHEDULED).set(state.scheduled(None) as f64);
    for (status, jobs) in
        [("completed", counts.completed), ("failed", counts.failed), ("canceled", counts.canceled)]
    {
        gauge!(ENDED, "status" => status).set(jobs as f64);
    }
    gauge!(IN_FLIGHT).set(in_flight as f64);
    let processors = workers.live(now).filter(|heartbeat| heartbeat.takes_jobs()).count();
    gauge!(PROCESSORS).set(processors as f64);
    gauge!(SLOTS).set(workers.capacity(now).total as f64);
    gauge!(PROJECTS).set(state.project_count() as f64);
    gauge!(SETTINGS).set(state.settings_bytes() as f64);
}

/// Records that this replica no longer leads: sums over all replicas are those of the leader.
pub(crate) fn stopped_leading(is_error: bool) {
    for name in [LEADING, READY, SCHEDULED, IN_FLIGHT, PROCESSORS, SLOTS, PROJECTS] {
        gauge!(name).set(0.0);
    }
    for status in ["completed", "failed", "canceled"] {
        gauge!(ENDED, "status" => status).set(0.0);
    }
    for class in PriorityClass::ALL {
        gauge!(OLDEST_READY, "class" => class.name()).set(0.0);
        for status in ["queued", "processing"] {
            gauge!(JOBS, "status" => status, "class" => class.name()).set(0.0);
        }
    }
    counter!(STEP_DOWNS).increment(u64::from(is_error));
}
