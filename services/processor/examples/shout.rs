//! A processor with one handler: the program of docs/processors.md.

use std::sync::Arc;

use clap::Parser;
use processor::{Config, Context, Handler, Outcome, Registry, Work};

struct Shout;

impl Handler for Shout {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let text = work.data.get().to_uppercase();
        let result = job::Json::of(&text).ok();
        Outcome::Done { result, spent: job::Spent::default() }
    }
}

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let registry = Registry::new().with(job::Kind::ProcessBatch, Shout);
    let stop = service::shutdown::on_signal()?;
    processor::run(Args::parse().config, registry, stop).await
}
