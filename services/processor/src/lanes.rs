//! Lanes: one per class and job type, and whether it has work.
//!
//! To ask each of them for every free slot would cost a round trip a lane. So a lane is asked
//! only while it gives what it is asked for; one that ran dry is only waited at, and flows again
//! when the first run comes with others behind it.

use std::sync::atomic::{AtomicBool, Ordering};

use job::{Class, Kind};

/// Every so many turns the lowest class is asked first, so that it never starves behind the others.
const LOW_FIRST_TURN: usize = 10;

/// Which lanes flow.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// By class, then job type. Whether there is work at the start is found by pulling.
    flowing: [[AtomicBool; Kind::EVERY.len()]; Class::ALL.len()],
}

impl Default for Lanes {
    fn default() -> Self {
        Self { flowing: [const { [const { AtomicBool::new(true) }; Kind::EVERY.len()] }; 3] }
    }
}

impl Lanes {
    /// The lanes to be asked in this turn, in their order.
    pub fn to_ask(&self, turn: usize) -> Vec<(Class, Kind)> {
        let mut classes = Class::ALL;
        if turn.is_multiple_of(LOW_FIRST_TURN) {
            classes.reverse();
        }
        let lanes = classes.into_iter().flat_map(|class| Kind::EVERY.map(|kind| (class, kind)));
        lanes.filter(|(class, kind)| self.lane(*class, *kind).load(Ordering::Relaxed)).collect()
    }

    /// Notes whether a lane flows.
    pub fn note(&self, class: Class, kind: Kind, flows: bool) {
        self.lane(class, kind).store(flows, Ordering::Relaxed);
    }

    fn lane(&self, class: Class, kind: Kind) -> &AtomicBool {
        &self.flowing[class as usize][kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_lane_is_left_out_until_it_flows_and_the_lowest_class_comes_first_at_times() {
        let lanes = Lanes::default();
        assert_eq!(lanes.to_ask(1).len(), Class::ALL.len() * Kind::EVERY.len());
        for class in Class::ALL {
            for kind in Kind::EVERY {
                lanes.note(class, kind, false);
            }
        }
        assert!(lanes.to_ask(1).is_empty());
        let (high, low) = ((Class::High, Kind::ProcessRedo), (Class::Low, Kind::ProcessBatch));
        lanes.note(high.0, high.1, true);
        lanes.note(low.0, low.1, true);
        assert_eq!(lanes.to_ask(1), [high, low]);
        assert_eq!(lanes.to_ask(LOW_FIRST_TURN), [low, high]);
    }
}
