//! Random commands, duplicates, late and repeated outcomes, and restarts from a snapshot and the
//! events after it, at every point: the state is always the same, and its invariants hold.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod spilled;

use std::{collections::HashMap, sync::Arc};

use job::{
    Config, Counts, Job, JobFilter, JobId, JobLabels, JobType, Json, Lookups, Missing, Position,
    PriorityClass, Scheduler, State, Status, Usage,
    command::{
        Cancel, Command, End, Enqueue, NewJob, OperationCommand, Outcome, Retry, StartOperation,
        Started,
    },
    event::Batch,
    operation::{Operation, OperationAction},
    time::Millis,
    transaction::Transaction,
};
use proptest::prelude::*;
use spilled::Elsewhere;

/// How long ended jobs are kept here.
const RETENTION_MS: i64 = 1_000_000;
/// How long after its change an active job is written to the bucket.
const LIVE_AFTER_MS: i64 = 2_000;

fn empty() -> State {
    State::new(RETENTION_MS).with_spill(Arc::new(Elsewhere::default()), 1_000)
}

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
    Operate(Option<u8>, u8, Option<u8>),
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
        2 => (prop::option::of(0..3u8), 0..30u8, prop::option::of(0..4u8))
            .prop_map(|(project, action, batch)| Action::Operate(project, action, batch)),
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
    /// EVENTS: each message with the last processed message of COMMANDS.
    history: Vec<(u64, Batch)>,
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
                self.transact(|transaction, _| Ok(transaction.requeue_lost(job, run)));
            }
            request => {
                let Some(command) = self.command(request) else { return };
                self.process(&command);
                // A report that is published twice changes nothing more than once.
                let is_report = matches!(command, Command::Started(_) | Command::Outcome(_));
                if is_report && self.history.len().is_multiple_of(3) {
                    self.process(&command);
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
                    job_type: if *redo { JobType::ProcessRedo } else { JobType::ProcessBatch },
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
                Command::Retry(Retry {
                    project,
                    job: Some(id),
                    filter: JobFilter::default(),
                    deliveries: false,
                    idempotency: None,
                })
            }
            Action::RetryAll { project } => Command::Retry(Retry {
                project: name(project),
                job: None,
                filter: JobFilter::default(),
                deliveries: false,
                idempotency: None,
            }),
            Action::Operate(project, action, batch) => {
                let action = match action {
                    0 => OperationAction::Cancel,
                    1..10 => OperationAction::Retry,
                    priority => OperationAction::SetPriority { priority: (*priority).into() },
                };
                self.next_id += 1;
                let projects = project.as_ref().map(|project| vec![name(project)]);
                let filter = JobFilter { batch: batch.as_ref().map(&name), ..JobFilter::default() };
                let operation =
                    Operation::new(JobId::from_u128(self.next_id), action, projects, filter);
                let start = StartOperation { operation, idempotency: None };
                Command::Operation(OperationCommand::Start(Box::new(start)))
            }
            Action::Started { nth, back } => {
                let job = self.look(self.pick(*nth)?)?;
                let Outcome { job, run, worker, .. } = self.outcome(&job, *back, End::Released);
                Command::Started(Started { job, run, worker, at: self.now, token: None })
            }
            Action::Outcome { nth, back, end } => {
                let job = self.look(self.pick(*nth)?)?;
                let end = match end {
                    0 | 1 => End::Done { result: None, stored: None },
                    2 => End::Retry { error: "again".into(), after_ms: None },
                    3 => End::Reject { error: "never".into() },
                    _ => End::Released,
                };
                Command::Outcome(self.outcome(&job, *back, end))
            }
            Action::Lost { .. } | Action::Stored | Action::Restart => return None,
        })
    }

    /// The report of a run of a job: of the current one, or so many before it.
    fn outcome(&self, job: &Job, back: u32, end: End) -> Outcome {
        Outcome {
            job: job.id,
            run: job.run.saturating_sub(back).max(1),
            worker: "w".into(),
            labels: JobLabels::job(job),
            started_at: Some(self.now - 5),
            finished_at: self.now,
            usage: Usage { input_tokens: 3, ..Usage::default() },
            end,
            token: None,
        }
    }

    fn pick(&self, nth: usize) -> Option<JobId> {
        (!self.ids.is_empty()).then(|| self.ids[nth % self.ids.len()])
    }

    fn look(&self, id: JobId) -> Option<Arc<Job>> {
        self.state.job(id).or_else(|| self.bucket.get(&id).cloned())
    }

    /// Processes a command and all slices of the bulk operations that it starts.
    fn process(&mut self, command: &Command) {
        self.transact(|transaction, lookups| {
            transaction.process(0, command, None, lookups)?;
            transaction.end_message(transaction.through() + 1, None);
            Ok(false)
        });
        while self.transact(|transaction, lookups| Ok(transaction.advance_bulk(lookups)?.is_some()))
        {
        }
    }

    /// Makes a transaction of one step; reads what that is missing, as the leader does.
    fn transact(
        &mut self,
        step: impl Fn(&mut Transaction<'_>, &Lookups) -> Result<bool, Missing>,
    ) -> bool {
        let (scheduler, config) = (Scheduler::default(), Config::default());
        let mut transaction = Transaction::begin(&mut self.state, &scheduler, &config, self.now);
        let mut lookups = Lookups::default();
        let result = loop {
            match step(&mut transaction, &lookups) {
                Ok(result) => break result,
                Err(Missing::Jobs(ids)) => {
                    let jobs = ids.into_iter().map(|id| (id, self.bucket.get(&id).cloned()));
                    lookups.jobs.extend(jobs);
                }
                Err(Missing::Reply(_)) => unreachable!("no request has an idempotency key"),
            }
        };
        let commit = transaction.commit();
        for (_, change) in commit.changes() {
            if change.status == Status::Completed {
                *self.completed.entry(change.job).or_default() += 1;
            }
        }
        for message in commit.messages {
            let batch = serde_json::from_slice(&message.payload).unwrap();
            self.history.push((message.through, batch));
            if self.history.len().is_multiple_of(5) {
                self.snapshot = (self.history.len(), written(&self.state));
            }
        }
        result
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
        for (sequence, (through, batch)) in (1..).zip(&self.history).skip(*at) {
            // A message that is applied twice changes nothing.
            state.apply_batch(sequence, *through, batch);
            state.apply_batch(sequence, *through, batch);
        }
        // Commands without events are processed again.
        assert!(state.through() <= self.state.through());
        state.processed(self.state.through());
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
        self.state = state;
    }

    fn check(&mut self) {
        let mut counted = Counts::default();
        for id in &self.ids {
            let Some(job) = self.look(*id) else { continue };
            counted.enter(job.status, job.priority_class);
            assert!(job.attempts <= job.max_attempts, "{job:?}");
            assert!(job.run >= 1 && job.version >= job.order);
            assert_eq!(job.data.get(), format!("\"data of {id}\""));
        }
        assert_eq!(counted, self.state.counts(None), "counts differ from the jobs");
        assert!(self.completed.values().all(|times| *times == 1), "a job completed twice");
        let queued: usize =
            PriorityClass::ALL.iter().map(|c| self.state.ready().depth_of(*c)).sum();
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
