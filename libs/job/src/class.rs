//! Priority classes: the three streams that work waits in.

use serde::{Deserialize, Serialize};

/// The class that a job's priority number puts it in. Each has its own stream of ready work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Run first.
    High,
    /// Run when nothing of class high waits.
    Normal,
    /// Run when nothing else waits, and in the share that is kept for it.
    Low,
}

impl Class {
    /// All classes, the one to be served first at the front.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The class's name, in subjects and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// Which priority numbers (0 to 1000, lower first) belong to which class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// The last number of class high.
    pub high_max: u16,
    /// The last number of class normal; higher numbers are low.
    pub normal_max: u16,
}

impl Default for Bands {
    fn default() -> Self {
        Self { high_max: 5, normal_max: 10 }
    }
}

impl Bands {
    /// The class of a job with this priority.
    pub fn class(self, priority: u16) -> Class {
        if priority <= self.high_max {
            Class::High
        } else if priority <= self.normal_max {
            Class::Normal
        } else {
            Class::Low
        }
    }
}
