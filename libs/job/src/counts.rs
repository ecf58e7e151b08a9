//! How many jobs a project has in which status: exact, and never counted by walking them.

use serde::{Deserialize, Serialize};

use crate::{ByClass, PriorityClass, Status};

/// Jobs by status. `queued` and `processing` count the present; the others count all ends so far,
/// less those that were retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Waiting, by class: high, normal, low.
    pub queued: ByClass<u64>,
    /// Running, by class.
    pub processing: ByClass<u64>,
    /// Done.
    pub completed: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub canceled: u64,
}

impl Counts {
    /// Counts a job in.
    pub fn enter(&mut self, status: Status, class: PriorityClass) {
        *self.cell(status, class) += 1;
    }

    /// Counts a job out.
    pub fn leave(&mut self, status: Status, class: PriorityClass) {
        let cell = self.cell(status, class);
        *cell = cell.saturating_sub(1);
    }

    /// Queued and running jobs.
    pub fn active(&self) -> u64 {
        self.queued.iter().chain(self.processing.iter()).sum()
    }

    /// All jobs.
    pub fn total(&self) -> u64 {
        self.active() + self.completed + self.failed + self.canceled
    }

    fn cell(&mut self, status: Status, class: PriorityClass) -> &mut u64 {
        match status {
            Status::Queued => &mut self.queued[class],
            Status::Processing => &mut self.processing[class],
            Status::Completed => &mut self.completed,
            Status::Failed => &mut self.failed,
            Status::Canceled => &mut self.canceled,
        }
    }
}
