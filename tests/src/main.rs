//! The binary under test: Jobmesh, built together with its tests; `bench`, which measures it; and `cluster`, which
//! tries it under faults for longer than the tests do.

mod bench;

use std::process::{Command, ExitCode};

/// The rounds of `cluster`, if its argument names no number.
const ROUNDS: &str = "3";

fn main() -> ExitCode {
    let mut words = std::env::args();
    if words.next().is_some_and(|name| name == bench::pickup::PROGRAM) {
        return bench::pickup::serve();
    }
    match words.next().as_deref() {
        Some("bench") => bench::main(),
        Some("cluster") => cluster(&words.next().unwrap_or_else(|| ROUNDS.to_owned())),
        _ => jobmesh::main(),
    }
}

/// Runs the trials of docs/faults.md: on three servers, then on three hosts, so many rounds of all faults.
fn cluster(rounds: &str) -> ExitCode {
    let mut trial = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    trial.args(["test", "--release", "-p", "tests", "--test", "e2e", "--"]);
    trial.args(["--nocapture", "--test-threads=1", "cluster::", "hosts::"]);
    trial.env("JOBMESH_CLUSTER_ROUNDS", rounds).current_dir(env!("CARGO_MANIFEST_DIR"));
    match trial.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo cannot be run: {error}");
            ExitCode::FAILURE
        }
    }
}
