//! Priority classes: the three streams that work waits in.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// The class that a job's priority number puts it in. Each has its own stream of ready work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PriorityClass {
    /// Run first.
    High,
    /// Run when class high has nothing queued, and in the share of starts that is kept for it.
    Normal,
    /// Run when no other class has anything queued, and in the share that is kept for it.
    Low,
}

impl PriorityClass {
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

/// One value for each priority class. As JSON, a list: high, normal, low.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByClass<T>([T; PriorityClass::ALL.len()]);

impl<T> ByClass<T> {
    /// The value that `of` gives for each class.
    pub fn from_fn(of: impl FnMut(PriorityClass) -> T) -> Self {
        Self(PriorityClass::ALL.map(of))
    }

    /// The values, each turned into another.
    pub fn map<U>(self, into: impl FnMut(T) -> U) -> ByClass<U> {
        ByClass(self.0.map(into))
    }

    /// The values: high, normal, low.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    /// The values, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }

    /// The values with their classes.
    pub fn into_entries(self) -> impl Iterator<Item = (PriorityClass, T)> {
        PriorityClass::ALL.into_iter().zip(self.0)
    }
}

impl<T> Index<PriorityClass> for ByClass<T> {
    type Output = T;

    fn index(&self, class: PriorityClass) -> &T {
        &self.0[class as usize]
    }
}

impl<T> IndexMut<PriorityClass> for ByClass<T> {
    fn index_mut(&mut self, class: PriorityClass) -> &mut T {
        &mut self.0[class as usize]
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
    pub fn class(self, priority: u16) -> PriorityClass {
        if priority <= self.high_max {
            PriorityClass::High
        } else if priority <= self.normal_max {
            PriorityClass::Normal
        } else {
            PriorityClass::Low
        }
    }
}
