//! `noop`: does nothing, at once. For measuring everything around a handler.

use std::sync::Arc;

use job::Usage;
use nats::wire::Work;

use crate::handler::{Context, Handler, Outcome};

/// Does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noop;

impl Handler for Noop {
    async fn handle(&self, _: Arc<Work>, _: Context) -> Outcome {
        Outcome::Done { result: None, usage: Usage::default() }
    }
}
