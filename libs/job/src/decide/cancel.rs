//! Cancel: stop the live jobs of a project, or of some of its batches.

use std::{collections::HashSet, sync::Arc};

use super::{Decision, Facts, Need, canceled, record};
use crate::{Job, State, command::Cancel, reply::Reply, time::Millis};

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
        let before = self.known.partial.unwrap_or_default();
        let live = self.live(ask);
        let batches: HashSet<_> = live.iter().map(|job| &job.batch).collect();
        let reply = Reply::Canceled {
            jobs: before.jobs + live.len() as u64,
            batches: before.batches + batches.len() as u64,
        };
        let events =
            live.iter().map(|job| canceled(job, "canceled by a request".into(), None)).collect();
        let mut decision = Decision { events, reply, stale: Vec::new() };
        record(&mut decision, ask.idempotency, now);
        Ok(decision)
    }

    /// The live jobs that a request names, oldest first.
    fn live(&self, ask: &Cancel) -> Vec<Arc<Job>> {
        let Some(project) = self.known.projects.get(&ask.project) else { return Vec::new() };
        let mut live: Vec<Arc<Job>> = match &ask.batches {
            None => project.live.iter().filter_map(|(_, id)| self.job(*id)).collect(),
            Some(batches) => {
                let distinct: HashSet<_> = batches.iter().collect();
                distinct.into_iter().flat_map(|batch| self.live_of(&ask.project, batch)).collect()
            }
        };
        live.sort_unstable_by_key(|job| job.order);
        live
    }
}
