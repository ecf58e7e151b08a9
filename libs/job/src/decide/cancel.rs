//! Cancel: stop the active jobs of a project, or of some of its batches.

use super::{Decision, Facts, Need};
use crate::{State, bulk::BulkAction, command::Cancel, time::Millis};

impl State {
    pub(super) fn decide_cancel(
        &self,
        facts: &Facts,
        now: Millis,
        ask: &Cancel,
    ) -> Result<Decision, Need> {
        if let Some(decision) = self.answered(facts, ask.idempotency)? {
            return Ok(decision);
        }
        let action = BulkAction::Cancel { batches: ask.batches.clone() };
        Ok(self.decide_bulk(now, &ask.project, action, ask.idempotency))
    }
}
