//! The processor: takes ready work, runs its handler, records how it ended, acks.
//!
//! Everything but the handlers is here for others to build on: implement [`Handler`], put it
//! into a [`Registry`] under the kinds of work it takes, and let [`main`](fn@main) run it, or [`run`].

mod admission;
mod config;
mod execute;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handler;
pub mod handlers;
mod in_flight;
mod incarnation;
mod lanes;
mod measurements;
mod prefetch;
mod registry;
mod results;
mod runner;
mod webhooks;

pub use config::Config;
pub use handler::{Context, Handler, Outcome};
pub use job::{JobType, Json, Usage};
pub use nats::wire::Work;
pub use registry::Registry;
pub use runner::run;
pub use webhooks::{Webhooks, deliver};

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Runs jobs of Jobmesh.")]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

/// The whole of a program that runs these handlers: settings come from its arguments and
/// environment, logs go to standard error, and SIGINT or SIGTERM drains it.
pub fn main(registry: Registry) -> ExitCode {
    let Arguments { config } = Arguments::parse();
    service::telemetry::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ended = runtime.block_on(async {
            let stop = service::shutdown::on_signal()?;
            run(config, registry, stop).await
        });
        // What a handler left on a thread of its own is not waited for.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("processor: {error:#}");
            ExitCode::FAILURE
        }
    }
}
