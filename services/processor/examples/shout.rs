//! A processor with one handler: the program of docs/processors.md.

use std::{process::ExitCode, sync::Arc};

use processor::{Context, Handler, JobType, Json, Outcome, Registry, Work};

struct Shout;

impl Handler for Shout {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let result = Json::of(&work.data.get().to_uppercase()).ok();
        Outcome::Done { result, usage: Default::default() }
    }
}

fn main() -> ExitCode {
    processor::main(Registry::new().with(JobType::ProcessBatch, Shout))
}
