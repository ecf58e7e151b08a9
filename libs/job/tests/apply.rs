//! Random commands, duplicates, late and repeated outcomes, and restarts from a snapshot and the
//! events after it, at every point: the state is always the same, and its invariants hold.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use job::{
    Class, Config, Counts, Gate, Job, JobId, JobLabels, Json, Kind, Lookups, Missing, Position,
    SpillFile, SpillRef, SpillStore, State, Status, Usage,
    command::{Cancel, Command, End, Enqueue, NewJob, Outcome, Retry, Started},
    event::{Batch, Event},
    time::Millis,
};
use proptest::prelude::*;

/// All classes and kinds may be taken.
const ALL: job::OpenJobTypes = [[true; 3]; 3];
/// How long ended jobs are kept here.
const RETENTION_MS: i64 = 1_000_000;
/// How long after its change an active job is written to the bucket.
const LIVE_AFTER_MS: i64 = 2_000;

/// Puts away more than a few bytes of data, as a state service does where a million jobs wait.
#[derive(Debug, Default)]
struct Elsewhere(Arc<Texts>);

#[derive(Debug, Default)]
struct Texts(Mutex<String>);

impl SpillStore for Elsewhere {
    fn put(&self, text: &str) -> Option<SpillRef> {
        let mut texts = self.0.0.lock().unwrap();
        let at = texts.len() as u32;
        texts.push_str(text);
        Some(SpillRef { file: self.0.clone(), at, bytes: text.len() as u32 })
    }
}

impl SpillFile for Texts {
    fn read(&self, at: u32, bytes: u32) -> io::Result<String> {
        let (at, bytes) = (at as usize, bytes as usize);
        Ok(self.0.lock().unwrap()[at..at + bytes].to_owned())
    }
}

fn empty() -> State {
    State::new(RETENTION_MS).with_spill(Arc::new(Elsewhere::default()), 1_000)
}

/// A snapshot of `state`.
fn written(state: &State) -> Vec<u8> {
    let mut snapshot = Vec::new();
    state.snapshot().write(&mut snapshot).unwrap();
    snapshot
}

/// One action on the state.
#[derive(Clone, Debug)]
enum Action {
    Enqueue {
        project: u8,
        batches: Vec<u8>,
        priority: u16,
        redo: bool,
    },
    Cancel {
        project: u8,
        batch: Option<u8>,
    },
    Retry {
        nth: usize,
    },
    RetryAll {
        project: u8,
    },
    Started {
        nth: usize,
        back: u32,
    },
    Outcome {
        nth: usize,
        back: u32,
        end: u8,
    },
    Lost {
        nth: usize,
    },
    /// The bucket has everything so far: ended jobs leave memory.
    Stored,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let batches = prop::collection::vec(0..4u8, 1..4);
    prop_oneof![
        3 => (0..3u8, batches, 0..20u16, any::<bool>()).prop_map(|(project, batches, priority, redo)| {
            Action::Enqueue { project, batches, priority, redo }
        }),
        1 => (0..3u8, prop::option::of(0..4u8)).prop_map(|(project, batch)| Action::Cancel { project, batch }),
        1 => any::<usize>().prop_map(|nth| Action::Retry { nth }),
        1 => (0..3u8).prop_map(|project| Action::RetryAll { project }),
        4 => (any::<usize>(), 0..2u32).prop_map(|(nth, back)| Action::Started { nth, back }),
        5 => (any::<usize>(), 0..2u32, 0..5u8).prop_map(|(nth, back, end)| Action::Outcome { nth, back, end }),
        1 => any::<usize>().prop_map(|nth| Action::Lost { nth }),
        2 => Just(Action::Stored),
        2 => Just(Action::Restart),
    ]
}

/// A leader with all that is around it: the history, a snapshot, the bucket.
struct World {
    state: State,
    now: Millis,
    next_id: u128,
    ids: Vec<JobId>,
    history: Vec<Batch>,
    snapshot: (usize, Vec<u8>),
    bucket: HashMap<JobId, Arc<Job>>,
    covered: Position,
    completed: HashMap<JobId, u32>,
}

impl World {
    fn new() -> Self {
        let state = empty();
        Self {
            snapshot: (0, written(&state)),
            state,
            now: 1_000,
            next_id: 1,
            ids: Vec::new(),
            history: Vec::new(),
            bucket: HashMap::new(),
            covered: Position::default(),
            completed: HashMap::new(),
        }
    }

    fn run(&mut self, action: &Action) {
        self.now += 700;
        self.state.wake(self.now);
        match action {
            Action::Stored => self.store(),
            Action::Restart => self.restart(),
            Action::Lost { nth } => {
                let Some(job) = self.pick(*nth) else { return };
                let run = self.state.job(job).map_or(1, |job| job.run);
                let lost = self.state.decide_lost(job, run);
                self.append(lost.into_iter().collect());
            }
            asked => {
                let Some(command) = self.command(asked) else { return };
                self.decide(&command);
                // Said twice, a processor's word changes nothing more than once.
                let word = matches!(command, Command::Started(_) | Command::Outcome(_));
                if word && self.history.len().is_multiple_of(3) {
                    self.decide(&command);
                }
            }
        }
        self.check();
    }

    fn command(&mut self, action: &Action) -> Option<Command> {
        let name = |n: &u8| format!("{n}").into();
        Some(match action {
            Action::Enqueue { project, batches, priority, redo } => {
                let mut batches = batches.clone();
                batches.dedup();
                let mut jobs: Vec<NewJob> = Vec::new();
                for batch in &batches {
                    let batch: job::Id = name(batch);
                    if jobs.iter().any(|job| job.batch == batch) {
                        continue;
                    }
                    let id = JobId::from_u128(self.next_id);
                    self.next_id += 1;
                    self.ids.push(id);
                    let data = Json::of(&format!("data of {id}")).unwrap();
                    jobs.push(NewJob { id, batch, data });
                }
                Command::Enqueue(Enqueue {
                    kind: if *redo { Kind::ProcessRedo } else { Kind::ProcessBatch },
                    priority: *priority,
                    supersede: !redo,
                    ..Enqueue::new(name(project), jobs)
                })
            }
            Action::Cancel { project, batch } => Command::Cancel(Cancel {
                project: name(project),
                batches: batch.as_ref().map(|batch| vec![name(batch)]),
                idempotency: None,
            }),
            Action::Retry { nth } => {
                let id = self.pick(*nth)?;
                let project = self.look(id)?.project.clone();
                Command::Retry(Retry { project, job: Some(id), idempotency: None })
            }
            Action::RetryAll { project } => {
                Command::Retry(Retry { project: name(project), job: None, idempotency: None })
            }
            Action::Started { nth, back } => {
                let job = self.look(self.pick(*nth)?)?;
                let run = job.run.saturating_sub(*back).max(1);
                Command::Started(Started { job: job.id, run, worker: "w".into(), at: self.now })
            }
            Action::Outcome { nth, back, end } => {
                let job = self.look(self.pick(*nth)?)?;
                let end = match end {
                    0 | 1 => End::Done { result: None, stored: None },
                    2 => End::Retry { error: "again".into(), after_ms: None },
                    3 => End::Reject { error: "never".into() },
                    _ => End::Released,
                };
                Command::Outcome(Outcome {
                    job: job.id,
                    run: job.run.saturating_sub(*back).max(1),
                    worker: "w".into(),
                    labels: JobLabels::job(&job),
                    started_at: Some(self.now - 5),
                    finished_at: self.now,
                    usage: Usage { input_tokens: 3, ..Usage::default() },
                    end,
                })
            }
            Action::Lost { .. } | Action::Stored | Action::Restart => return None,
        })
    }

    fn pick(&self, nth: usize) -> Option<JobId> {
        (!self.ids.is_empty()).then(|| self.ids[nth % self.ids.len()])
    }

    fn look(&self, id: JobId) -> Option<Arc<Job>> {
        self.state.job(id).or_else(|| self.bucket.get(&id).cloned())
    }

    fn decide(&mut self, command: &Command) {
        let mut lookups = Lookups::default();
        let decision = loop {
            match self.state.decide(&Config::default(), &lookups, self.now, command) {
                Ok(decision) => break decision,
                Err(Missing::Jobs(ids)) => {
                    lookups
                        .jobs
                        .extend(ids.into_iter().map(|id| (id, self.bucket.get(&id).cloned())));
                }
                Err(Missing::Reply(key)) => drop(lookups.answers.insert(key, None)),
            }
        };
        self.append(decision.events);
        while let Some(slice) = self.slice() {
            self.append(slice);
        }
    }

    /// The events of the next slice of a bulk operation.
    fn slice(&self) -> Option<Vec<Event>> {
        let mut lookups = Lookups::default();
        loop {
            match self.state.decide_slice(&lookups, self.now) {
                Ok(slice) => return slice.map(|slice| slice.events),
                Err(Missing::Jobs(ids)) => {
                    let jobs = ids.into_iter().map(|id| (id, self.bucket.get(&id).cloned()));
                    lookups.jobs.extend(jobs);
                }
                Err(Missing::Reply(_)) => unreachable!("no request has an idempotency key"),
            }
        }
    }

    fn append(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        for event in &events {
            if let Some(change) = event.change()
                && change.status == Status::Completed
            {
                *self.completed.entry(change.job).or_default() += 1;
            }
        }
        let batch = Batch { at: self.now, commands: Vec::new(), events };
        self.history.push(batch);
        let sequence = self.history.len() as u64;
        self.state.apply_batch(sequence, sequence, &self.history[self.history.len() - 1]);
        if sequence.is_multiple_of(5) {
            self.snapshot = (self.history.len(), written(&self.state));
        }
    }

    /// Writes what the bucket is behind with, as the projection does.
    fn store(&mut self) {
        while self.state.is_behind() {
            for what in self.state.behind(3) {
                let job::DirtyKey::Job(id) = what else { continue };
                let Some(job) = self.state.job(id) else { continue };
                self.state.stored(what, job.version);
                self.bucket.insert(id, job);
            }
            self.covered = self.state.covered();
        }
        for what in self.state.waiting(self.now - LIVE_AFTER_MS, 3) {
            let job::DirtyKey::Job(id) = what else { panic!("an answer does not live") };
            let job = self.state.job(id).expect("a dirty job is in memory");
            assert!(!job.status.is_terminal(), "a terminal job is written at once");
            self.state.stored(what, job.version);
            self.bucket.insert(id, job);
        }
    }

    /// Starts over from the snapshot and the events after it.
    fn restart(&mut self) {
        let (at, bytes) = &self.snapshot;
        let mut state = empty().restore(&**bytes).unwrap();
        for (index, batch) in self.history.iter().enumerate().skip(*at) {
            let sequence = index as u64 + 1;
            // A message that is applied twice changes nothing.
            state.apply_batch(sequence, sequence, batch);
            state.apply_batch(sequence, sequence, batch);
        }
        state.settle(self.covered);
        let jobs = |state: &State| {
            let live =
                state.jobs().filter(|job| job.version > self.covered || !job.status.is_terminal());
            live.map(|job| (job.id, job.clone())).collect::<HashMap<_, _>>()
        };
        assert_eq!(jobs(&state), jobs(&self.state), "a restart changed the jobs");
        for project in [None, Some("0"), Some("1"), Some("2")] {
            assert_eq!(
                state.counts(project),
                self.state.counts(project),
                "a restart changed counts"
            );
        }
        self.state.settle(self.covered);
        assert_eq!(state.snapshot(), self.state.snapshot(), "a restart changed what is known");
        assert_eq!(state.position(), self.state.position());
        assert_eq!(state.through(), self.state.through());
        self.state = state;
    }

    fn check(&mut self) {
        let mut counted = Counts::default();
        for id in &self.ids {
            let Some(job) = self.look(*id) else { continue };
            counted.enter(job.status, job.class);
            assert!(job.attempts <= job.max_attempts, "{job:?}");
            assert!(job.run >= 1 && job.version >= job.order);
            assert_eq!(job.data.get(), format!("\"data of {id}\""));
        }
        assert_eq!(counted, self.state.counts(None), "counts differ from the jobs");
        assert!(self.completed.values().all(|times| *times == 1), "a job completed twice");
        let queued: usize = Class::ALL.iter().map(|c| self.state.ready().depth_of(*c)).sum();
        let waiting = self.state.scheduled(None) as usize;
        let live = self.state.jobs().filter(|job| job.status == Status::Queued).count();
        assert_eq!(queued + waiting, live, "the queue differs from the jobs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_same_events_always_give_the_same_state(actions in prop::collection::vec(action(), 1..120)) {
        let mut world = World::new();
        for action in &actions {
            world.run(action);
        }
        world.restart();
    }
}

fn enqueue(state: &mut State, sequence: u64, project: &str, jobs: &[(u128, u16)]) {
    let mut events = Vec::new();
    for (id, priority) in jobs {
        let job = NewJob::new(JobId::from_u128(*id), format!("{id}").into());
        let enqueue = Enqueue { priority: *priority, ..Enqueue::new(project.into(), vec![job]) };
        let decided =
            state.decide(&Config::default(), &Lookups::default(), 1, &Command::Enqueue(enqueue));
        events.extend(decided.unwrap().events);
    }
    state.apply_batch(sequence, sequence, &Batch { at: 1, commands: Vec::new(), events });
}

#[test]
fn dispatch_goes_by_class_then_round_robin_over_projects_then_by_number_and_age() {
    let mut state = State::new(RETENTION_MS);
    enqueue(&mut state, 1, "a", &[(1, 9), (2, 7), (3, 7), (4, 8)]);
    enqueue(&mut state, 2, "b", &[(5, 10), (6, 10)]);
    enqueue(&mut state, 3, "b", &[(7, 0)]);
    let order: Vec<u128> =
        std::iter::from_fn(|| state.ready().next(0.0, ALL, [false; 3], |_| Gate::Open(1)))
            .map(|id| id.as_u128())
            .collect();
    assert_eq!(order, [7, 2, 5, 3, 6, 4, 1]);
}

#[test]
fn a_heavier_project_has_as_many_more_turns() {
    let mut state = State::new(RETENTION_MS);
    let jobs = |from: u128| (from..from + 8).map(|id| (id, 10)).collect::<Vec<_>>();
    enqueue(&mut state, 1, "a", &jobs(1));
    enqueue(&mut state, 2, "b", &jobs(101));
    let weight = |project: &job::Id| Gate::Open(if &**project == "a" { 3 } else { 1 });
    let turns = std::iter::from_fn(|| state.ready().next(0.0, ALL, [false; 3], weight)).take(8);
    let of_b: Vec<usize> =
        (0..).zip(turns).filter(|(_, id)| id.as_u128() > 100).map(|(turn, _)| turn).collect();
    assert_eq!(of_b, [3, 7]);
}

#[test]
fn a_lower_class_keeps_its_share_of_the_turns() {
    let mut state = State::new(RETENTION_MS);
    let high: Vec<(u128, u16)> = (1..=200).map(|id| (id, 0)).collect();
    let low: Vec<(u128, u16)> = (1_001..=1_200).map(|id| (id, 500)).collect();
    enqueue(&mut state, 1, "a", &high);
    enqueue(&mut state, 2, "a", &low);
    let first: Vec<u128> = (0..100)
        .filter_map(|_| state.ready().next(0.1, ALL, [false; 3], |_| Gate::Open(1)))
        .map(|id| id.as_u128())
        .collect();
    assert_eq!(first.iter().filter(|id| **id > 1_000).count(), 10);
}
