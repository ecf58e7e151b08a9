//! Logs: one line per event on standard error, as text or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging. `JOBMESH_LOG` filters it as `RUST_LOG` does elsewhere (default `info`);
/// `JOBMESH_LOG_FORMAT=json` makes each line an object.
pub fn start() {
    let filter = EnvFilter::try_from_env("JOBMESH_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn"));
    let json = std::env::var("JOBMESH_LOG_FORMAT").is_ok_and(|format| format == "json");
    let colors = std::io::stderr().is_terminal();
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colors);
    // A second start, as in tests that run services in their own process, changes nothing.
    let _ = if json { lines.json().try_init() } else { lines.with_target(false).try_init() };
}
