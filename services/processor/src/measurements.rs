//! What a processor measures.

use std::time::Duration;

use job::JobType;
use service::prometheus::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const SLOTS: &str = "jobmesh_processor_slots";
const RUNNING: &str = "jobmesh_processor_running_runs";
const DRAINING: &str = "jobmesh_processor_draining";
const RUNS: &str = "jobmesh_runs_total";
const DURATIONS: &str = "jobmesh_run_seconds";
const WAITS: &str = "jobmesh_run_wait_seconds";
const REDELIVERED: &str = "jobmesh_redelivered_runs_total";

/// Gives each measurement its unit and help.
pub(crate) fn describe() {
    describe_gauge!(SLOTS, "Runs that this process executes at once, for jobs and for webhooks.");
    describe_gauge!(RUNNING, "Runs in flight here, with those that were fetched ahead.");
    describe_gauge!(DRAINING, "1 while this processor stops and takes no further work.");
    describe_counter!(RUNS, "Runs that ended here, by type of job and outcome.");
    describe_histogram!(DURATIONS, Unit::Seconds, "How long handlers took, by type of job.");
    describe_histogram!(
        WAITS,
        Unit::Seconds,
        "How long jobs waited for their run, by type of job."
    );
    describe_counter!(REDELIVERED, "Messages that were delivered again, and not run here.");
    counter!(REDELIVERED).absolute(0);
}

/// Records what the processor does now.
pub(crate) fn observe(job_types: &[JobType], slots: usize, running: usize, is_draining: bool) {
    // One process runs the jobs of clients and sends webhooks, in slots of their own.
    let work = if job_types.iter().any(|it| it.is_internal()) { "webhooks" } else { "jobs" };
    gauge!(SLOTS, "work" => work).set(slots as f64);
    gauge!(RUNNING, "work" => work).set(running as f64);
    gauge!(DRAINING).set(f64::from(u8::from(is_draining)));
}

/// Records how long a job waited for its run.
pub(crate) fn started(job_type: JobType, wait: Duration) {
    histogram!(WAITS, "type" => job_type.name()).record(wait);
}

/// Records the end of a run.
pub(crate) fn ended(job_type: JobType, outcome: &'static str, took: Duration) {
    counter!(RUNS, "type" => job_type.name(), "outcome" => outcome).increment(1);
    histogram!(DURATIONS, "type" => job_type.name()).record(took);
}

/// Counts a message that was delivered again.
pub(crate) fn redelivered() {
    counter!(REDELIVERED).increment(1);
}
