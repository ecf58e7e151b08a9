//! Ids of recent messages: a message that arrives twice is processed once.

use std::collections::{HashSet, VecDeque};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::Millis;

/// How long a message's id is remembered. Producers repeat a message for seconds; the broker's
/// own window for duplicates is two minutes.
const REMEMBER_MS: i64 = 600_000;
/// How many ids are remembered at most.
const REMEMBER_MAX: usize = 200_000;

/// The ids of the messages processed in the last ten minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<(Millis, Uuid)>", into = "Vec<(Millis, Uuid)>")]
pub struct DedupWindow {
    order: VecDeque<(Millis, Uuid)>,
    ids: HashSet<Uuid>,
}

impl DedupWindow {
    /// True if this message was processed recently.
    pub fn contains(&self, id: Uuid) -> bool {
        self.ids.contains(&id)
    }

    /// Records a message processed `at`, and forgets old ones.
    pub fn note(&mut self, at: Millis, id: Uuid) {
        if self.ids.insert(id) {
            self.order.push_back((at, id));
        }
        while let Some(&(then, oldest)) = self.order.front() {
            if self.order.len() <= REMEMBER_MAX && at - then <= REMEMBER_MS {
                break;
            }
            self.order.pop_front();
            self.ids.remove(&oldest);
        }
    }
}

impl From<Vec<(Millis, Uuid)>> for DedupWindow {
    fn from(order: Vec<(Millis, Uuid)>) -> Self {
        Self { ids: order.iter().map(|(_, id)| *id).collect(), order: order.into() }
    }
}

impl From<DedupWindow> for Vec<(Millis, Uuid)> {
    fn from(recent: DedupWindow) -> Self {
        recent.order.into()
    }
}
