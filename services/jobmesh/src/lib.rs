//! The one binary of Jobmesh: each service as a subcommand, and `dev`, which runs them all.

mod backup;
mod client;
#[cfg(test)]
mod configuration;
mod dev;
mod handlers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use futures_util::FutureExt;
use mimalloc::MiMalloc;

/// Jobs are allocated and freed by the thousand: the allocator took a third of the time of
/// processing a command.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A job queue for batch work: a mesh of services on NATS JetStream, with its numbers in ClickHouse.
#[derive(Debug, Parser)]
#[command(name = "jobmesh", version = service::VERSION.as_str())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything on this machine: nats-server, ClickHouse's engine and all services.
    Dev(dev::Config),
    /// Runs one service.
    Serve {
        #[command(subcommand)]
        service: Service,
    },
    #[command(flatten)]
    Client(client::Command),
}

#[derive(Debug, Subcommand)]
enum Service {
    /// Serves the HTTP API.
    Edge(Box<edge::Config>),
    /// Decides commands, dispatches work, answers queries.
    State(Box<state::Config>),
    /// Runs jobs.
    Processor(Box<handlers::Config>),
    /// Writes ended runs into ClickHouse, answers queries over time.
    Metrics(Box<metrics::Config>),
    /// Serves ClickHouse's HTTP interface over its engine as a library.
    Olap(olap::Config),
}

/// Runs the command line to its end.
pub fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Client(command) => return client::main(command),
        Command::Dev(config) => dev::run(config),
        Command::Serve { service } => serve(service),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jobmesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(service: Service) -> anyhow::Result<()> {
    service::telemetry::start();
    tracing::info!(version = service::VERSION.as_str(), "jobmesh starts");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        let stop = service::shutdown::on_signal()?;
        match service {
            Service::Edge(config) => edge::run(*config, stop).await,
            Service::State(config) => state::run(*config, stop).await,
            Service::Processor(config) => {
                let registry = config.registry()?;
                let deliveries =
                    processor::deliver(&config.processor, &config.webhooks, stop.clone());
                let jobs = processor::run(config.processor.clone(), registry, stop.clone());
                // If one service fails, the other stops in order.
                let or_stop = |ended: anyhow::Result<()>| ended.inspect_err(|_| stop.cancel());
                let (jobs, deliveries) = tokio::join!(jobs.map(or_stop), deliveries.map(or_stop));
                jobs.and(deliveries)
            }
            Service::Metrics(config) => metrics::run(*config, stop).await,
            Service::Olap(config) => olap::run(config, stop).await,
        }
    });
    // What a handler left on a thread of its own is not waited for.
    runtime.shutdown_background();
    ended
}
