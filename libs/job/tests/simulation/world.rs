//! A world: what is on disk, which processors are online, and what really happened.

use std::{collections::HashMap, sync::Arc};

use job::{
    Backoff, ByClass, Config, Id, Job, JobId, Patch,
    command::{Command, Project},
    event::Batch,
    time::Millis,
};
use uuid::Uuid;

use super::{
    leader::{Leader, empty, written},
    processors::{Processor, Ready},
    random::Random,
};

/// Steps within which a healed world comes to rest.
const HEALING_STEPS: usize = 20_000;

/// A message of COMMANDS.
#[derive(Clone)]
pub struct Message {
    pub id: Option<uuid::Uuid>,
    pub commands: Vec<Command>,
}

/// A message of EVENTS: the last processed message of COMMANDS, and the events.
pub type Stored = (u64, Batch);

pub struct World {
    pub random: Random,
    pub now: Millis,
    pub config: Config,
    pub projects: Vec<Id>,
    pub commands: Vec<Message>,
    /// EVENTS. `None` is a message that no state service appended.
    pub history: Vec<Option<Stored>>,
    /// The length of `history` at the last snapshot, and the snapshot.
    pub snapshot: (usize, Vec<u8>),
    pub streams: ByClass<Vec<Ready>>,
    pub processors: Vec<Processor>,
    pub leader: Leader,
    pub ids: Vec<JobId>,
    /// How many jobs each job superseded, as EVENTS has it.
    pub superseded: HashMap<JobId, u64>,
    /// The messages that are processed: the place in `commands`, and when.
    pub processed: HashMap<Uuid, (usize, Millis)>,
    pub is_healing: bool,
    /// The true starts of each project.
    pub starts: HashMap<Id, Vec<Millis>>,
    /// Starts of other projects since a project of a class was served, while it could have been.
    pub passed_over: HashMap<(usize, Id), u64>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        // Small messages of EVENTS make large commands continue in the next one.
        let message_bytes_max = if random.one_in(2) { 700 } else { 4_000_000 };
        let projects = (0..=random.below(4)).map(|n| format!("p{n}").into()).collect();
        let processors = (0..=random.below(3)).map(|_| random.below(4) as usize + 1);
        let processors = processors
            .collect::<Vec<_>>()
            .into_iter()
            .map(|capacity| Processor { capacity, running: Vec::new() })
            .collect();
        let state = empty();
        let backoff = Backoff { base_ms: 500, factor: 2.0, cap_ms: 5_000, jitter: 0.2 };
        let mut world = Self {
            random,
            now: 1_000_000,
            config: Config { backoff, message_bytes_max, ..Config::default() },
            projects,
            commands: Vec::new(),
            history: Vec::new(),
            snapshot: (0, written(&state)),
            streams: ByClass::default(),
            processors,
            leader: Leader::new(state),
            ids: Vec::new(),
            superseded: HashMap::new(),
            processed: HashMap::new(),
            is_healing: false,
            starts: HashMap::new(),
            passed_over: HashMap::new(),
        };
        for project in world.projects.clone() {
            world.set_limits(project);
        }
        world
    }

    pub fn step(&mut self) {
        match self.random.below(if self.is_healing { 6 } else { 15 }) {
            0 | 1 => self.process(),
            2 => self.pull(),
            3 => self.end_runs(),
            4 => self.pass_time(),
            5 => self.read_or_reconcile(),
            6..=8 => self.client(),
            9 => self.pause_or_resume(),
            10 if self.random.one_in(4) => self.crash_leader(),
            11 if self.random.one_in(4) => self.crash_processor(),
            12 => self.write_snapshot(),
            13 => self.repeat(),
            _ => self.process(),
        }
        self.dispatch();
        self.check();
    }

    fn pass_time(&mut self) {
        let most = if self.random.one_in(5) { 40_000 } else { 800 };
        self.now += self.random.below(most) as i64;
    }

    /// Nothing fails from here on, and only the number of slots is limited: all jobs end.
    pub fn heal(&mut self) {
        self.is_healing = true;
        for project in self.projects.clone() {
            let change = Patch {
                max_concurrency: Some(Some(0)),
                requests_per_minute: Some(Some(0)),
                tokens_per_minute: Some(Some(0)),
                paused: Some(None),
                ..Patch::default()
            };
            self.send(Command::Project(Project { project, change }));
        }
        for _ in 0..HEALING_STEPS {
            self.step();
            if self.is_caught_up() && self.clients_jobs().all(|job| job.status.is_terminal()) {
                self.check_deliveries();
                return;
            }
        }
        let live: Vec<_> = self.clients_jobs().filter(|job| !job.status.is_terminal()).collect();
        panic!(
            "{} jobs never become terminal, first {:?}; {:?}",
            live.len(),
            live.first(),
            self.streams
        );
    }

    /// The jobs without deliveries, which no processor of this world takes.
    pub fn clients_jobs(&self) -> impl Iterator<Item = Arc<Job>> {
        self.leader.state.jobs().filter(|job| !job.job_type.is_internal())
    }

    /// True if the leader has processed all commands.
    pub fn is_caught_up(&self) -> bool {
        self.leader.state.through() as usize >= self.commands.len()
    }

    pub fn project(&mut self) -> Id {
        let n = self.random.below(self.projects.len() as u64) as usize;
        self.projects[n].clone()
    }

    pub fn batch(&mut self) -> Id {
        format!("b{}", self.random.below(4)).into()
    }
}
