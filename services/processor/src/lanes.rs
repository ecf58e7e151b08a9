//! Lanes: one per class and job type, and whether it has work.
//!
//! To ask each lane for every free slot would cost a round trip per lane. So a lane is asked only
//! while it has enough runs. An empty lane has one pull that waits, and is asked again when a run
//! arrives with others behind it.

use std::sync::atomic::{AtomicBool, Ordering};

use job::{ByClass, JobType, PriorityClass};

/// Every so many turns the lowest class is asked first, so that it never starves behind the others.
const LOW_FIRST_TURN: usize = 10;

/// Which lanes flow.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// For each class and job type. Whether there is work at the start is found by pulling.
    flowing: ByClass<[AtomicBool; JobType::EVERY.len()]>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            flowing: ByClass::from_fn(|_| [const { AtomicBool::new(true) }; JobType::EVERY.len()]),
        }
    }
}

impl Lanes {
    /// The lanes to be asked in this turn, in their order.
    pub fn to_ask(&self, turn: usize) -> Vec<(PriorityClass, JobType)> {
        let mut classes = PriorityClass::ALL;
        if turn.is_multiple_of(LOW_FIRST_TURN) {
            classes.reverse();
        }
        let lanes =
            classes.into_iter().flat_map(|class| JobType::EVERY.map(|job_type| (class, job_type)));
        lanes
            .filter(|(class, job_type)| self.lane(*class, *job_type).load(Ordering::Relaxed))
            .collect()
    }

    /// Notes whether a lane flows.
    pub fn note(&self, class: PriorityClass, job_type: JobType, flows: bool) {
        self.lane(class, job_type).store(flows, Ordering::Relaxed);
    }

    fn lane(&self, class: PriorityClass, job_type: JobType) -> &AtomicBool {
        &self.flowing[class][job_type as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_lane_is_left_out_until_it_flows_and_the_lowest_class_comes_first_at_times() {
        let lanes = Lanes::default();
        assert_eq!(lanes.to_ask(1).len(), PriorityClass::ALL.len() * JobType::EVERY.len());
        for class in PriorityClass::ALL {
            for job_type in JobType::EVERY {
                lanes.note(class, job_type, false);
            }
        }
        assert!(lanes.to_ask(1).is_empty());
        let (high, low) = (
            (PriorityClass::High, JobType::ProcessRedo),
            (PriorityClass::Low, JobType::ProcessBatch),
        );
        lanes.note(high.0, high.1, true);
        lanes.note(low.0, low.1, true);
        assert_eq!(lanes.to_ask(1), [high, low]);
        assert_eq!(lanes.to_ask(LOW_FIRST_TURN), [low, high]);
    }
}
