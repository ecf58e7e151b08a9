//! What is known: everything that the events say, and no more. A snapshot holds it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

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

impl Project {
    /// What a snapshot holds of it: without what follows from the jobs.
    fn frozen(&self) -> Self {
        Self {
            counts: self.counts,
            failed: self.failed.clone(),
            settings: self.settings.clone(),
            schedules: self.schedules.clone(),
            starts: self.starts.clone(),
            tokens: self.tokens.clone(),
            live: HashMap::new(),
        }
    }
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
    /// Shared with a snapshot while that is written down; a change of a job copies it then.
    pub jobs: HashMap<JobId, Arc<Job>>,
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

impl Known {
    /// What a snapshot holds, taken at once; the jobs are shared.
    fn frozen(&self) -> Self {
        let projects = self.projects.iter().map(|(id, project)| (id.clone(), project.frozen()));
        Self {
            through: self.through,
            position: self.position,
            term: self.term,
            at: self.at,
            jobs: self.jobs.clone(),
            projects: projects.collect(),
            total: self.total,
            recent: self.recent.clone(),
            answers: self.answers.clone(),
            partial: self.partial,
            hours: self.hours.clone(),
        }
    }
}

/// The state at one moment, to be written down while the state goes on.
#[derive(Debug)]
pub struct Frozen(Known);

impl Frozen {
    /// Takes what is known at this moment.
    pub(crate) fn of(known: &Known) -> Self {
        Self(known.frozen())
    }

    /// Appends the state as JSON, to be restored later.
    ///
    /// # Errors
    /// Where it cannot be written, which no valid state causes.
    pub fn write(&self, to: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        serde_json::to_writer(to, &self.0)
    }
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
