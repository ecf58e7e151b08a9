//! What is known: everything that the events say, and no more. A snapshot holds it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    Answer, Counts, Digest, Id, Job, JobId, Position, Settings, minute::Minute, recent::Recent,
    schedule::Timed, time::Millis,
};

/// What one project has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Project {
    pub counts: Counts,
    /// Failed jobs, and until when they are kept: what `retryAll` reaches.
    pub failed: HashMap<JobId, Millis>,
    #[serde(default)]
    pub settings: Settings,
    #[serde(default)]
    pub schedules: BTreeMap<Id, Timed>,
    /// Runs that started in the last minute.
    #[serde(default)]
    pub starts: Minute,
    /// Tokens that were counted in the last minute.
    #[serde(default)]
    pub tokens: Minute,
    /// Live jobs by batch.
    #[serde(skip)]
    pub live: HashMap<Id, Vec<JobId>>,
}

/// Everything that the events say, and no more: what a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The last message of COMMANDS that is folded.
    pub through: u64,
    /// The last event.
    pub position: Position,
    /// How many leaders there were.
    pub term: u64,
    /// The time of the last event.
    pub at: Millis,
    /// Live jobs, and ended ones that the bucket does not have yet.
    /// Boxed: half of a large table is empty.
    pub jobs: HashMap<JobId, Box<Job>>,
    pub projects: HashMap<Id, Project>,
    pub total: Counts,
    pub recent: Recent,
    /// Answers that the bucket does not have yet.
    pub answers: HashMap<Digest, (Position, Answer)>,
    /// How far the message of COMMANDS is folded that comes next.
    #[serde(default)]
    pub partial: Option<Partial>,
    /// The first message of each hour: where to cut EVENTS by age.
    pub hours: VecDeque<(Millis, u64)>,
}

/// How far a message of COMMANDS is folded, where its events needed more than one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// The item that is to be gone on with; those before it are done.
    pub item: u32,
    /// Jobs that this item cancelled or queued again so far.
    pub jobs: u64,
    /// Batches they belonged to.
    pub batches: u64,
}

/// What a project used of its limits in the last 60 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Jobs that run now.
    pub running: u64,
    /// Runs that started.
    pub starts: u64,
    /// Tokens that were counted.
    pub tokens: u64,
}
