//! Heartbeats of processors, from which state knows their capacity and the runs in flight. They are
//! not stored: a processor that misses them is offline.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use job::{Capacity, Id, JobId, JobType, Run, bounds::ID_BYTES_MAX, time::Millis};
use serde::{Deserialize, Serialize};

use crate::query::ProcessorSummary;

/// How often a processor says that it is there.
pub const PERIOD: Duration = Duration::from_secs(2);
/// A processor without a heartbeat for this long is offline.
pub const GONE_AFTER: Duration = Duration::from_secs(6);

/// How long an offline processor is still listed.
const LISTED_FOR: Duration = Duration::from_secs(10 * 60);
/// Handlers of one processor that are listed.
const HANDLERS_MAX: usize = 100;

/// Processors that are known at the same time.
const PROCESSORS_MAX: usize = 10_000;
/// Slots of one processor.
const SLOTS_MAX: usize = 100_000;

/// What a processor says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its name, of this process alone.
    pub processor: Id,
    /// How many jobs it runs at once.
    pub capacity: usize,
    /// The kinds of work it takes.
    #[serde(alias = "kinds", rename = "types")]
    pub job_types: Vec<JobType>,
    /// Its runs in flight, until their outcomes are stored.
    pub running: Vec<(JobId, Run)>,
    /// True while it stops and takes no further work.
    pub draining: bool,
    /// The names of its handlers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<Id>,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Id>,
    /// The newest version of messages that it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_version: Option<u32>,
    /// When it started, by its clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Millis>,
}

impl Heartbeat {
    /// Whether it takes work that clients ask for.
    pub fn takes_jobs(&self) -> bool {
        self.job_types.iter().any(|job_type| !job_type.is_internal())
    }
}

/// The processors with recent heartbeats.
#[derive(Debug, Default)]
pub struct WorkerRegistry {
    heard: HashMap<Id, (Instant, Heartbeat)>,
    /// When the last heartbeat arrived.
    last_at: Option<Instant>,
}

impl WorkerRegistry {
    /// Records a heartbeat, within bounds; returns true if the capacity of the online processors
    /// changed.
    pub fn note(&mut self, mut said: Heartbeat, now: Instant) -> bool {
        let before = self.capacity(now);
        let known = self.heard.contains_key(&said.processor);
        if !known && self.heard.len() >= PROCESSORS_MAX {
            self.heard.retain(|_, (at, _)| is_online(*at, now));
        }
        if said.processor.len() > ID_BYTES_MAX || (!known && self.heard.len() >= PROCESSORS_MAX) {
            tracing::warn!(processors = self.heard.len(), "heartbeat ignored: out of bounds");
            return false;
        }
        said.capacity = said.capacity.min(SLOTS_MAX);
        said.running.truncate(SLOTS_MAX * 2);
        said.job_types.truncate(JobType::EVERY.len());
        said.handlers.truncate(HANDLERS_MAX);
        let is_short = |text: &Id| text.len() <= ID_BYTES_MAX;
        said.handlers.retain(is_short);
        said.version = said.version.filter(is_short);
        self.heard.insert(said.processor.clone(), (now, said));
        self.heard.retain(|_, (at, _)| now.duration_since(*at) < LISTED_FOR);
        self.last_at = Some(now);
        before != self.capacity(now)
    }

    /// The processors that are online.
    pub fn live(&self, now: Instant) -> impl Iterator<Item = &Heartbeat> {
        let live = move |(at, _): &&(Instant, Heartbeat)| is_online(*at, now);
        self.heard.values().filter(live).map(|(_, said)| said)
    }

    /// The processors that are online or went offline in the last ten minutes, by name.
    pub fn list(&self, now: Instant) -> Vec<ProcessorSummary> {
        let recent = self.heard.values().filter(|(at, _)| now.duration_since(*at) < LISTED_FOR);
        let summaries = recent.map(|(at, heartbeat)| ProcessorSummary {
            processor: heartbeat.processor.clone(),
            online: is_online(*at, now),
            draining: heartbeat.draining,
            capacity: heartbeat.capacity,
            running: heartbeat.running.len(),
            job_types: heartbeat.job_types.clone(),
            handlers: heartbeat.handlers.clone(),
            version: heartbeat.version.clone(),
            started_at: heartbeat.started_at,
            heartbeat_age_ms: u64::try_from(now.duration_since(*at).as_millis()).unwrap_or(0),
        });
        let mut summaries: Vec<_> = summaries.collect();
        summaries.sort_unstable_by(|a, b| a.processor.cmp(&b.processor));
        summaries
    }

    /// How many jobs the live processors that still take work run at once.
    pub fn capacity(&self, now: Instant) -> Capacity {
        let mut capacity = Capacity::default();
        for said in self.live(now).filter(|said| !said.draining) {
            if said.takes_jobs() {
                capacity.total += said.capacity;
            }
            for job_type in &said.job_types {
                capacity.job_types[*job_type as usize] += said.capacity;
            }
        }
        capacity
    }

    /// The processor that last reported this run.
    pub fn owner_of(&self, job: JobId, run: Run, now: Instant) -> Option<&Id> {
        let holds = |said: &&Heartbeat| said.running.contains(&(job, run));
        self.live(now).find(holds).map(|said| &said.processor)
    }

    /// The processors that were online when the last heartbeat came.
    pub fn processors(&self) -> impl Iterator<Item = &Id> {
        let at_last = self.last_at;
        let online = self
            .heard
            .iter()
            .filter(move |(_, (at, _))| at_last.is_some_and(|last| is_online(*at, last)));
        online.map(|(processor, _)| processor)
    }

    /// Whether a heartbeat of this processor came after `since`.
    pub fn has_heartbeat_since(&self, processor: &Id, since: Instant) -> bool {
        self.heard.get(processor).is_some_and(|(at, _)| *at > since)
    }

    /// All runs in flight at online processors.
    pub fn held(&self, now: Instant) -> impl Iterator<Item = (JobId, Run)> {
        self.live(now).flat_map(|said| said.running.iter().copied())
    }
}

fn is_online(heartbeat_at: Instant, now: Instant) -> bool {
    now.duration_since(heartbeat_at) < GONE_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_processor_is_gone_with_its_capacity_and_its_runs() {
        let start = Instant::now();
        let run = (JobId::from_u128(1), 1);
        let said = Heartbeat {
            processor: "p".into(),
            capacity: 4,
            job_types: JobType::EVERY.to_vec(),
            running: vec![run],
            ..Heartbeat::default()
        };
        let mut workers = WorkerRegistry::default();
        assert!(workers.note(said, start));
        assert_eq!(workers.capacity(start + PERIOD), Capacity { total: 4, job_types: [4, 4, 4] });
        assert!(workers.owner_of(run.0, run.1, start + PERIOD).is_some());
        assert_eq!(workers.processors().collect::<Vec<_>>(), [&Id::from("p")]);
        assert!(!workers.has_heartbeat_since(&"p".into(), start));
        assert_eq!(workers.capacity(start + GONE_AFTER), Capacity::default());
        assert!(workers.owner_of(run.0, run.1, start + GONE_AFTER).is_none());
        let listed = |at: Instant| workers.list(at).iter().map(|it| it.online).collect::<Vec<_>>();
        assert_eq!(listed(start + PERIOD), [true]);
        assert_eq!(listed(start + GONE_AFTER), [false]);
        assert!(listed(start + LISTED_FOR).is_empty());
    }
}
