//! Cancel: stop the active jobs of a project, or of some of its batches.

use super::{Decision, Lookups, Missing};
use crate::{State, bulk::BulkAction, command::Cancel, time::Millis};

impl State {
    pub(super) fn decide_cancel(
        &self,
        lookups: &Lookups,
        now: Millis,
        request: &Cancel,
    ) -> Result<Decision, Missing> {
        if let Some(decision) = self.answered(lookups, request.idempotency)? {
            return Ok(decision);
        }
        let action = BulkAction::Cancel { batches: request.batches.clone() };
        Ok(self.decide_bulk(now, &request.project, action, request.idempotency))
    }
}
