//! State and scheduler on a simulated clock, by seed: random projects, limits, failures, crashes of
//! leaders and processors, lost and repeated messages.
//!
//! Limits are never exceeded, no slot stays free while a job may run, no project starves, and every
//! job becomes terminal. A failing seed is printed; `JOBMESH_SIMULATION_SEED=<seed>` replays it
//! alone, `JOBMESH_SIMULATION_SEEDS=<count>` sets how many run.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use job::{
    Backoff, Capacity, Config, Id, JobId, JobLabels, Json, Kind, Lookups, Patch, RequeueReason,
    Run, Scheduler, State, Status, Usage,
    command::{Cancel, Command, End, Enqueue, NewJob, Outcome, Project, Retry, Started},
    event::{Batch, Event, Transition},
    time::Millis,
};

/// The number of seeds by default.
const SEEDS: u64 = 10_000;
/// Steps of one world before it is healed.
const STEPS: usize = 120;
/// Steps within which a healed world comes to rest.
const HEALING_STEPS: usize = 20_000;
/// How long an ended job is kept.
const RETENTION_MS: i64 = 1_000_000_000;
/// By how much a permit may come back late.
const PERMIT_STEP_MS: i64 = 100;
/// How long a delivery stays unacked before it is redelivered.
const ACK_WAIT_MS: i64 = 10_000;

/// Random numbers by seed: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A message of ready work.
#[derive(Clone, Debug)]
struct Ready {
    job: JobId,
    run: Run,
    project: Id,
    delivered: Option<(usize, Millis)>,
}

/// A run in a processor.
#[derive(Clone, Debug)]
struct Running {
    job: JobId,
    run: Run,
    project: Id,
    labels: JobLabels,
    started_at: Millis,
    ends_at: Millis,
}

/// A processor, and the life it is in: a new one has new hands.
#[derive(Debug, Default)]
struct Processor {
    capacity: usize,
    running: Vec<Running>,
}

/// A reading of the streams that is not judged yet.
struct Reading {
    number: u64,
    present: HashSet<(JobId, Run)>,
    barrier: usize,
}

/// The leader in memory.
struct Leader {
    state: State,
    dispatch: Scheduler,
    reading: Option<Reading>,
    suspect: bool,
}

/// What is on disk, who is there, and what really happened.
struct World {
    random: Random,
    now: Millis,
    config: Config,
    projects: Vec<Id>,
    commands: Vec<Command>,
    history: Vec<(u64, Batch)>,
    snapshot: (usize, Vec<u8>),
    streams: [Vec<Ready>; 3],
    processors: Vec<Processor>,
    leader: Leader,
    ids: Vec<JobId>,
    healing: bool,
    /// True starts by project.
    starts: HashMap<Id, Vec<Millis>>,
    /// Starts of others since a project of a class was served, while it could have been.
    passed_over: HashMap<(usize, Id), u64>,
}

impl Leader {
    fn new(state: State) -> Self {
        Self { state, dispatch: Scheduler::default(), reading: None, suspect: true }
    }
}

/// A snapshot of `state`.
fn written(state: &State) -> Vec<u8> {
    let mut snapshot = Vec::new();
    state.snapshot().write(&mut snapshot).unwrap();
    snapshot
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let projects = (0..=random.below(4)).map(|n| format!("p{n}").into()).collect();
        let processors = (0..=random.below(3)).map(|_| random.below(4) as usize + 1);
        let processors = processors
            .collect::<Vec<_>>()
            .into_iter()
            .map(|capacity| Processor { capacity, running: Vec::new() })
            .collect();
        let state = State::new(RETENTION_MS);
        let backoff = Backoff { base_ms: 500, factor: 2.0, cap_ms: 5_000, jitter: 0.2 };
        let mut world = Self {
            random,
            now: 1_000_000,
            config: Config { backoff, ..Config::default() },
            projects,
            commands: Vec::new(),
            history: Vec::new(),
            snapshot: (0, written(&state)),
            streams: [Vec::new(), Vec::new(), Vec::new()],
            processors,
            leader: Leader::new(state),
            ids: Vec::new(),
            healing: false,
            starts: HashMap::new(),
            passed_over: HashMap::new(),
        };
        for project in world.projects.clone() {
            world.set_limits(project);
        }
        world
    }

    /// Limits that hold for the whole life of this world.
    fn set_limits(&mut self, project: Id) {
        let random = &mut self.random;
        let change = Patch {
            max_concurrency: random.one_in(2).then(|| Some(random.below(4) as u32)),
            requests_per_minute: random.one_in(2).then(|| Some(random.below(12) as u32)),
            tokens_per_minute: random.one_in(4).then(|| Some(random.below(200))),
            weight: random.one_in(3).then(|| Some(random.below(4) as u32 + 1)),
            max_attempts: random.one_in(3).then(|| Some(random.below(3) as u32 + 1)),
            ..Patch::default()
        };
        self.commands.push(Command::Project(Project { project, change }));
    }

    fn step(&mut self) {
        match self.random.below(if self.healing { 6 } else { 14 }) {
            0 | 1 => self.fold(),
            2 => self.pull(),
            3 => self.end_runs(),
            4 => self.pass_time(),
            5 => self.look_at_streams(),
            6..=8 => self.client(),
            9 => self.pause_or_resume(),
            10 if self.random.one_in(4) => self.crash_leader(),
            11 if self.random.one_in(4) => self.crash_processor(),
            12 => self.snapshot(),
            _ => self.fold(),
        }
        self.dispatch();
        self.check();
    }

    fn client(&mut self) {
        let project = self.project();
        let command = match self.random.below(8) {
            0 => Command::Cancel(Cancel { project, batches: None, idempotency: None }),
            1 => {
                let batch = self.batch();
                Command::Cancel(Cancel { project, batches: Some(vec![batch]), idempotency: None })
            }
            2 => Command::Retry(Retry { project, job: None, idempotency: None }),
            _ => self.enqueue(project),
        };
        self.commands.push(command);
    }

    fn enqueue(&mut self, project: Id) -> Command {
        let count = self.random.below(6) + 1;
        let mut jobs = Vec::new();
        for n in 0..count {
            let id = JobId::from_u128(self.ids.len() as u128 + 1);
            self.ids.push(id);
            let batch = if n == 0 { self.batch() } else { format!("{id}").into() };
            jobs.push(NewJob { id, batch, data: Json::default() });
        }
        let later = self.now + self.random.below(5_000) as i64;
        Command::Enqueue(Enqueue {
            project,
            kind: if self.random.one_in(4) { Kind::ProcessRedo } else { Kind::ProcessBatch },
            priority: self.random.below(16) as u16,
            run_at: self.random.one_in(5).then_some(later),
            max_attempts: self.random.one_in(5).then_some(2),
            retry: None,
            supersede: self.random.one_in(2),
            jobs,
            idempotency: None,
        })
    }

    fn pause_or_resume(&mut self) {
        let project = self.project();
        let paused = Some(Some(self.random.one_in(2)));
        let change = Patch { paused, ..Patch::default() };
        self.commands.push(Command::Project(Project { project, change }));
    }

    /// Folds commands and appends what comes of them; may die before any effect.
    fn fold(&mut self) {
        let mut through = self.leader.state.through() as usize;
        if self.random.one_in(2)
            && let Ok(Some(slice)) = self.leader.state.decide_slice(&Lookups::default(), self.now)
        {
            self.append(through as u64, slice.events);
        }
        let mut count = self.random.below(8) + 1;
        while through < self.commands.len() && count > 0 {
            let command = self.commands[through].clone();
            through += 1;
            count -= 1;
            // Ended jobs stay in memory here, so that nothing has to be read.
            let lookups = Lookups { held: self.held(), ..Lookups::default() };
            self.leader.state.wake(self.now);
            let Ok(decision) = self.leader.state.decide(&self.config, &lookups, self.now, &command)
            else {
                self.leader.state.processed(through as u64);
                continue;
            };
            self.append(through as u64, decision.events);
        }
    }

    /// Records events with what dispatch knows of them, applies them, and lets dispatch hear them.
    fn append(&mut self, through: u64, mut events: Vec<Event>) {
        let Leader { state, dispatch, .. } = &mut self.leader;
        events.iter_mut().for_each(|event| dispatch.mark(event));
        let batch = Batch { at: self.now, commands: Vec::new(), events };
        let sequence = self.history.len() as u64 + 1;
        state.apply_batch(sequence, through, &batch);
        for event in &batch.events {
            dispatch.on_event(state, event);
        }
        self.history.push((through, batch));
        self.stop_what_is_not_current();
    }

    /// Hints reach the processors at once here.
    fn stop_what_is_not_current(&mut self) {
        let state = &self.leader.state;
        let current = |job: JobId, run: Run| {
            state.job(job).is_some_and(|job| job.run == run && !job.status.is_terminal())
        };
        for processor in &mut self.processors {
            processor.running.retain(|running| current(running.job, running.run));
        }
        for stream in &mut self.streams {
            stream.retain(|ready| ready.delivered.is_none() || current(ready.job, ready.run));
        }
    }

    fn capacity(&self) -> Capacity {
        let total = self.processors.iter().map(|processor| processor.capacity).sum();
        Capacity { total, kinds: [total, total, 0] }
    }

    /// Dispatches all that may go; some of it is lost on its way.
    fn dispatch(&mut self) {
        let capacity = self.capacity();
        self.leader.state.wake(self.now);
        loop {
            // A permit comes back within a step: before that a job may start, after it it must.
            let (may, must) = (self.eligible(0), self.eligible(PERMIT_STEP_MS));
            let Leader { state, dispatch, .. } = &mut self.leader;
            let next =
                dispatch.next(state, &self.config, self.now, capacity, [false; 3], [false; 3]);
            let Some(id) = next else {
                self.check_conserving(&must);
                return;
            };
            let job = self.leader.state.job(id).unwrap().clone();
            assert!(may.contains(&id), "{job:?} was dispatched past a limit");
            self.note_turn(&job, &must);
            if !self.healing && self.random.one_in(30) {
                self.leader.suspect = true;
                continue;
            }
            let (project, run) = (job.project.clone(), job.run);
            let ready = Ready { job: id, run, project, delivered: None };
            self.streams[job.class as usize].push(ready);
        }
    }

    /// The projects of a class that waited while another was served.
    fn note_turn(&mut self, served: &job::Job, eligible: &HashSet<JobId>) {
        let class = served.class as usize;
        let waiting: HashSet<Id> = eligible
            .iter()
            .filter_map(|id| self.leader.state.job(*id))
            .filter(|job| job.class == served.class && job.project != served.project)
            .map(|job| job.project.clone())
            .collect();
        self.passed_over.retain(|(of, project), _| *of != class || waiting.contains(project));
        let weights: u64 = self
            .projects
            .iter()
            .map(|project| u64::from(self.leader.state.settings(project).weight.unwrap_or(1)))
            .sum();
        for project in waiting {
            let passed = self.passed_over.entry((class, project)).or_default();
            *passed += 1;
            assert!(*passed <= 2 * weights, "{:?} starves", self.passed_over);
        }
    }

    /// The jobs that may be dispatched now, found the slow way.
    fn eligible(&self, step_ms: i64) -> HashSet<JobId> {
        let state = &self.leader.state;
        let mut free: HashMap<&Id, bool> = HashMap::new();
        for project in &self.projects {
            free.insert(project, self.may_start(project, step_ms));
        }
        let queued = state.jobs().filter(|job| job.status == Status::Queued);
        queued
            .filter(|job| job.run_at.is_none_or(|at| at <= self.now))
            .filter(|job| !self.leader.dispatch.is_out(job.id) && free[&job.project])
            .map(|job| job.id)
            .collect()
    }

    /// Whether a project's limits let it start a run, counted from what is in the streams, what
    /// runs, and what the history says of the last minute.
    fn may_start(&self, project: &Id, step_ms: i64) -> bool {
        let state = &self.leader.state;
        let limits = state.settings(project).limits(&self.config.limits);
        if state.settings(project).paused {
            return false;
        }
        let out: Vec<Arc<job::Job>> = self
            .leader
            .dispatch
            .out()
            .filter_map(|id| state.job(id))
            .filter(|job| job.project == *project)
            .collect();
        if limits.max_concurrency > 0 && out.len() >= limits.max_concurrency as usize {
            return false;
        }
        if let Some(until) = self.deferred_until(project)
            && (self.now < until || !out.is_empty())
        {
            return false;
        }
        let not_started = out.iter().filter(|job| job.status == Status::Queued).count() as u64;
        let (starts, tokens) = self.last_minute(project, 60_000 + step_ms);
        let requests = u64::from(limits.requests_per_minute);
        (requests == 0 || not_started + starts < requests)
            && (limits.tokens_per_minute == 0 || tokens < limits.tokens_per_minute)
    }

    /// Until when the last run of a project that came to its own end keeps the others from starting.
    fn deferred_until(&self, project: &Id) -> Option<Millis> {
        let ended = self.history.iter().rev().flat_map(|(_, batch)| {
            batch.events.iter().rev().filter_map(move |event| match event {
                Event::Ended(ended) if ended.labels.project == *project => Some((batch.at, ended)),
                _ => None,
            })
        });
        for (at, ended) in ended {
            match &ended.to {
                Transition::Queued(again) if again.why == RequeueReason::Deferred => {
                    return Some(again.run_at.unwrap_or(at).min(at + 60_000));
                }
                Transition::Queued(again) if again.why != RequeueReason::Retry => {}
                _ if ended.started_at.is_some() => return None,
                _ => {}
            }
        }
        None
    }

    /// Starts, known and possible, and tokens of a project in the last `length_ms`.
    fn last_minute(&self, project: &Id, length_ms: i64) -> (u64, u64) {
        let (mut starts, mut tokens) = (0, 0);
        for (_, batch) in self.history.iter().rev() {
            if batch.at + length_ms <= self.now {
                break;
            }
            for event in &batch.events {
                match event {
                    Event::Started { of, .. } if of.project == *project => starts += 1,
                    Event::Ended(ended) if ended.labels.project == *project => {
                        starts += u64::from(ended.doubtful);
                        tokens += ended.usage.input_tokens;
                    }
                    Event::Refused(refused) => {
                        if let Some(late) = &refused.ended
                            && late.labels.project == *project
                        {
                            tokens += late.usage.input_tokens;
                        }
                    }
                    _ => {}
                }
            }
        }
        (starts, tokens)
    }

    /// Nothing was dispatched: then no slot is free, or nothing may run.
    fn check_conserving(&self, eligible: &HashSet<JobId>) {
        let judged = self.leader.reading.is_none() && !self.leader.suspect;
        let out = self.leader.dispatch.out().count();
        if judged && out < self.capacity().total {
            assert!(eligible.is_empty(), "{out} out, and {eligible:?} may run and do not");
        }
    }

    /// Processors take what their free slots allow.
    fn pull(&mut self) {
        let at = self.random.below(self.processors.len() as u64) as usize;
        while self.processors[at].running.len() < self.processors[at].capacity {
            let Some((class, index)) = self.next_ready() else { return };
            let ready = &mut self.streams[class][index];
            let again = ready.delivered.replace((at, self.now)).is_some();
            let ready = ready.clone();
            let Some(job) = self.leader.state.job(ready.job) else { continue };
            let labels = JobLabels { attempt: job.attempts + 1, ..JobLabels::job(&job) };
            if again {
                let reported = self.outcome(&ready, labels, None, End::Redelivered, 0);
                self.say(reported);
                self.streams[class].remove(index);
                continue;
            }
            let current = job.run == ready.run && !job.status.is_terminal();
            if !current {
                // A hint was remembered: it is acked and not run.
                self.streams[class].remove(index);
                continue;
            }
            self.starts.entry(ready.project.clone()).or_default().push(self.now);
            let length = 10 + self.random.below(3_000) as i64;
            let ends_at = self.now + if self.random.one_in(10) { 20 * length } else { length };
            let Ready { job, run, project, .. } = ready;
            let running = Running { job, run, project, labels, started_at: self.now, ends_at };
            self.processors[at].running.push(running);
            let worker: Id = format!("w{at}").into();
            if !self.random.one_in(4) {
                let started = Command::Started(Started { job, run, worker, at: self.now });
                self.say(started);
            }
        }
    }

    /// The next message to hand out: never handed out, or not acked for too long.
    fn next_ready(&self) -> Option<(usize, usize)> {
        for (class, stream) in self.streams.iter().enumerate() {
            let free = stream.iter().position(|ready| match ready.delivered {
                None => true,
                Some((to, at)) => {
                    let held = self.processors[to]
                        .running
                        .iter()
                        .any(|running| running.job == ready.job && running.run == ready.run);
                    !held && at + ACK_WAIT_MS <= self.now
                }
            });
            if let Some(index) = free {
                return Some((class, index));
            }
        }
        None
    }

    /// Runs whose time is over end: recorded, then acked, perhaps with a crash in between.
    fn end_runs(&mut self) {
        for at in 0..self.processors.len() {
            let (over, on): (Vec<_>, Vec<_>) =
                self.processors[at].running.drain(..).partition(|r| r.ends_at <= self.now);
            self.processors[at].running = on;
            for running in over {
                let end = match self.random.below(10) {
                    0..=2 => End::Retry { error: "no".into(), after_ms: None },
                    3 => End::Reject { error: "never".into() },
                    4 if !self.healing => End::Released,
                    5 if !self.healing => {
                        let after_ms = Some(self.random.below(90_000) as i64);
                        End::Deferred { error: "later".into(), after_ms }
                    }
                    _ => End::Done { result: None, stored: None },
                };
                let Running { job, run, project, labels, started_at, .. } = running;
                let ready = Ready { job, run, project, delivered: None };
                let tokens = self.random.below(40);
                let outcome = self.outcome(&ready, labels, Some(started_at), end, tokens);
                self.say(outcome);
                if self.healing || !self.random.one_in(10) {
                    for stream in &mut self.streams {
                        stream.retain(|ready| ready.job != job || ready.run != run);
                    }
                }
            }
        }
    }

    fn outcome(
        &self,
        ready: &Ready,
        labels: JobLabels,
        started_at: Option<Millis>,
        end: End,
        tokens: u64,
    ) -> Command {
        Command::Outcome(Outcome {
            job: ready.job,
            run: ready.run,
            worker: "w".into(),
            labels,
            started_at,
            finished_at: self.now,
            usage: Usage { input_tokens: tokens, ..Usage::default() },
            end,
        })
    }

    /// Says something once or twice.
    fn say(&mut self, command: Command) {
        if self.random.one_in(8) {
            self.commands.push(command.clone());
        }
        self.commands.push(command);
    }

    fn pass_time(&mut self) {
        let most = if self.random.one_in(5) { 40_000 } else { 800 };
        self.now += self.random.below(most) as i64;
    }

    /// Reads the streams, or reconciles once the commands up to the barrier are processed.
    fn look_at_streams(&mut self) {
        let Leader { state, dispatch, reading, suspect } = &mut self.leader;
        match reading.take() {
            None => {
                let ready = self.streams.iter().flatten();
                let present = ready.map(|ready| (ready.job, ready.run)).collect();
                *suspect = false;
                let (number, barrier) = (dispatch.begin_reading(), self.commands.len());
                *reading = Some(Reading { number, present, barrier });
            }
            Some(read) if state.through() as usize >= read.barrier => {
                let unwanted = dispatch.reconcile(state, read.number, &read.present);
                for stream in &mut self.streams {
                    stream.retain(|ready| !unwanted.contains(&(ready.job, ready.run)));
                }
                self.give_up_what_nobody_has();
            }
            early => *reading = early,
        }
    }

    /// Runs that no processor and no stream has are lost.
    fn give_up_what_nobody_has(&mut self) {
        let held = self.held();
        let in_streams: HashSet<(JobId, Run)> =
            self.streams.iter().flatten().map(|ready| (ready.job, ready.run)).collect();
        let state = &self.leader.state;
        let lost: Vec<(JobId, Run)> = state
            .jobs()
            .filter(|job| job.status == Status::Processing)
            .map(|job| (job.id, job.run))
            .filter(|run| !held.contains(run) && !in_streams.contains(run))
            .collect();
        for (job, run) in lost {
            // Its outcome may be on its way: then it is not lost.
            if state_is_behind(&self.leader.state, &self.commands) {
                return;
            }
            let events = self.leader.state.decide_lost(job, run).into_iter().collect();
            let through = self.leader.state.through();
            self.append(through, events);
        }
    }

    fn held(&self) -> HashSet<(JobId, Run)> {
        let running = self.processors.iter().flat_map(|processor| &processor.running);
        running.map(|running| (running.job, running.run)).collect()
    }

    fn snapshot(&mut self) {
        self.snapshot = (self.history.len(), written(&self.leader.state));
    }

    /// Another leads: snapshot, events after it, and nothing of what only the old one knew.
    fn crash_leader(&mut self) {
        let (from, bytes) = &self.snapshot;
        let mut state = State::new(RETENTION_MS).restore(&**bytes).unwrap();
        for (index, (through, batch)) in self.history.iter().enumerate().skip(*from) {
            state.apply_batch(index as u64 + 1, *through, batch);
        }
        assert_eq!(state.counts(None), self.leader.state.counts(None));
        self.leader = Leader::new(state);
    }

    fn crash_processor(&mut self) {
        let at = self.random.below(self.processors.len() as u64) as usize;
        self.processors[at].running.clear();
    }

    /// What really runs and really started is within the limits.
    fn check(&self) {
        for project in &self.projects {
            let limits = self.leader.state.settings(project).limits(&self.config.limits);
            let running = self.processors.iter().flat_map(|processor| &processor.running);
            let running = running.filter(|running| running.project == *project).count();
            if limits.max_concurrency > 0 {
                assert!(running <= limits.max_concurrency as usize, "{project}: {running} run");
            }
            if limits.requests_per_minute > 0 {
                let starts = self.starts.get(project).map_or(&[][..], Vec::as_slice);
                let lately = starts.iter().rev().take_while(|at| **at + 60_000 > self.now);
                let lately = lately.count();
                let most = limits.requests_per_minute as usize;
                assert!(lately <= most, "{project}: {lately} starts in 60 s, {most} may");
            }
        }
    }

    /// Nothing fails from here on, and only the number of slots is limited: all jobs end.
    fn heal(&mut self) {
        self.healing = true;
        for project in self.projects.clone() {
            let change = Patch {
                max_concurrency: Some(Some(0)),
                requests_per_minute: Some(Some(0)),
                tokens_per_minute: Some(Some(0)),
                paused: Some(None),
                ..Patch::default()
            };
            self.commands.push(Command::Project(Project { project, change }));
        }
        for _ in 0..HEALING_STEPS {
            self.step();
            let processed = !state_is_behind(&self.leader.state, &self.commands);
            if processed && self.leader.state.jobs().all(|job| job.status.is_terminal()) {
                return;
            }
        }
        let live: Vec<_> =
            self.leader.state.jobs().filter(|job| !job.status.is_terminal()).collect();
        panic!("{} jobs never end, first {:?}; {:?}", live.len(), live.first(), self.streams);
    }

    fn project(&mut self) -> Id {
        let n = self.random.below(self.projects.len() as u64) as usize;
        self.projects[n].clone()
    }

    fn batch(&mut self) -> Id {
        format!("b{}", self.random.below(4)).into()
    }
}

fn state_is_behind(state: &State, commands: &[Command]) -> bool {
    (state.through() as usize) < commands.len()
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.heal();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn limits_hold_and_nobody_starves_whatever_crashes() {
    if let Some(seed) = number("JOBMESH_SIMULATION_SEED") {
        return run(seed);
    }
    let seeds = number("JOBMESH_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || failed.load(Ordering::Relaxed) != u64::MAX {
                        return;
                    }
                    if std::panic::catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed == u64::MAX, "replay with JOBMESH_SIMULATION_SEED={failed}");
}
