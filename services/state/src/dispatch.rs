//! Dispatch: keeps the streams of ready work just full enough for the live processors.
//!
//! It is level-triggered. What is out (in a stream, or with a processor) is known from what was
//! dispatched and from the streams themselves; a dispatch whose fate is unknown makes the streams
//! be read again, and until then its runs count as out.

use std::collections::{HashMap, HashSet};

use job::{Class, JobId, Run, State, Status};
use mesh::{
    publish::{DUPLICATE_ID, LIMITS, Message, WRONG_LAST_SEQUENCE},
    work,
};

/// Runs in one dispatch.
const DISPATCH_RUNS_MAX: usize = 500;
/// Bytes in one dispatch.
const DISPATCH_BYTES_MAX: usize = 4_000_000;
/// Runs that may be out beyond what the processors run, as a multiple of their capacity: what a
/// processor takes next is then in the stream before it asks.
const AHEAD_FACTOR: usize = 2;
/// The same, at the least.
const AHEAD_RUNS_MIN: usize = 16;

/// A run that was dispatched and has not ended.
#[derive(Clone, Copy, Debug)]
struct Out {
    run: Run,
    /// Counts the readings of the streams: one begun before the dispatch says nothing about it.
    reading: u64,
}

/// What is out, and what may go out.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    fences: [u64; 3],
    busy: [bool; 3],
    out: HashMap<JobId, Out>,
    readings: u64,
    ready: bool,
    suspect: bool,
}

/// A dispatch to be made.
pub(crate) struct Plan {
    pub class: Class,
    pub fence: u64,
    pub messages: Vec<Message>,
}

impl Dispatcher {
    /// Dispatches behind these fences, once the streams were read.
    pub fn new(fences: [u64; 3]) -> Self {
        Self {
            fences,
            busy: [false; 3],
            out: HashMap::new(),
            readings: 0,
            ready: false,
            suspect: true,
        }
    }

    /// Whether a run of this job is out.
    pub fn is_out(&self, job: JobId) -> bool {
        self.out.contains_key(&job)
    }

    /// The jobs with a run that is out.
    pub fn out(&self) -> impl Iterator<Item = JobId> + '_ {
        self.out.keys().copied()
    }

    /// The run has ended: it is out no more.
    pub fn ended(&mut self, job: JobId, run: Run) {
        if self.out.get(&job).is_some_and(|out| out.run <= run) {
            self.out.remove(&job);
        }
    }

    /// What is to be dispatched now, given the capacity of the live processors. It counts as out
    /// from here on.
    pub fn plan(&mut self, state: &mut State, share: f64, capacity: usize) -> Vec<Plan> {
        if !self.ready || capacity == 0 {
            return Vec::new();
        }
        let window = capacity * AHEAD_FACTOR + AHEAD_RUNS_MIN;
        let mut taken: [(Vec<Message>, usize); 3] = Default::default();
        while self.out.len() < window {
            let open = [0, 1, 2].map(|class: usize| {
                let (messages, bytes) = &taken[class];
                !self.busy[class]
                    && messages.len() < DISPATCH_RUNS_MAX
                    && *bytes < DISPATCH_BYTES_MAX
            });
            let Some(id) = state.ready().next(share, open) else { break };
            let Some(job) = state.job(id) else { continue };
            let message = work::message(job);
            let (messages, bytes) = &mut taken[job.class as usize];
            *bytes += message.payload.len();
            messages.push(message);
            self.out.insert(id, Out { run: job.run, reading: self.readings });
        }
        let mut plans = Vec::new();
        for (class, (messages, _)) in Class::ALL.into_iter().zip(taken) {
            if !messages.is_empty() {
                self.busy[class as usize] = true;
                plans.push(Plan { class, fence: self.fences[class as usize], messages });
            }
        }
        plans
    }

    /// A dispatch came to an end. Returns whether this service may go on dispatching.
    pub fn dispatched(&mut self, class: Class, end: Result<(), mesh::publish::Error>) -> bool {
        self.busy[class as usize] = false;
        let Err(error) = end else { return true };
        if error.is(WRONG_LAST_SEQUENCE) {
            return false;
        }
        let expected = error.is(LIMITS) || error.is(DUPLICATE_ID);
        tracing::warn!(error = %error, class = class.name(), expected, "dispatch to be looked into");
        self.suspect = true;
        true
    }

    /// Whether the streams should be read; says so once.
    pub fn take_suspicion(&mut self) -> bool {
        std::mem::take(&mut self.suspect)
    }

    /// The streams should be read soon.
    pub fn suspect(&mut self) {
        self.suspect = true;
    }

    /// A reading of the streams begins; returns its number.
    pub fn begin_reading(&mut self) -> u64 {
        self.readings += 1;
        self.readings
    }

    /// Judges by what was in the streams, once the fold has passed the barrier that was read
    /// after them: queued runs that are there are out, those that are not are to be dispatched.
    /// Returns runs in the streams that nobody wants any more.
    pub fn judge(
        &mut self,
        state: &mut State,
        reading: u64,
        present: &HashSet<(JobId, Run)>,
    ) -> Vec<(JobId, Run)> {
        let mut unwanted = Vec::new();
        for (id, run) in present {
            let wanted = state.job(*id).filter(|job| job.run == *run && !job.status.is_terminal());
            let Some(job) = wanted.cloned() else {
                unwanted.push((*id, *run));
                continue;
            };
            state.ready().remove(&job);
            self.out.entry(*id).or_insert(Out { run: *run, reading });
        }
        let running: Vec<(JobId, Run)> = state
            .jobs()
            .filter(|job| job.status == Status::Processing)
            .map(|job| (job.id, job.run))
            .collect();
        for (id, run) in running {
            self.out.entry(id).or_insert(Out { run, reading });
        }
        let missing = |(id, out): (&JobId, &Out)| {
            let known = out.reading < reading && !present.contains(&(*id, out.run));
            let queued = state.job(*id).is_none_or(|job| job.status != Status::Processing);
            (known && queued).then_some(*id)
        };
        let missing: Vec<JobId> = self.out.iter().filter_map(missing).collect();
        for id in missing {
            self.out.remove(&id);
            state.put_back(id);
        }
        self.ready = true;
        unwanted
    }
}

#[cfg(test)]
mod tests {
    use job::{
        Config, Facts, Json, Kind, Position,
        command::{Command, Enqueue, NewJob},
    };

    use super::*;

    /// A state with one queued job, and a dispatcher that has put it into its stream.
    fn dispatched() -> (State, Dispatcher, JobId) {
        let id = JobId::from_u128(1);
        let mut state = State::new(1_000);
        let enqueue = Enqueue {
            project: "p".into(),
            kind: Kind::ProcessBatch,
            priority: 10,
            run_at: None,
            max_attempts: None,
            supersede: true,
            jobs: vec![NewJob { id, batch: "b".into(), data: Json::default() }],
            idempotency: None,
        };
        let command = Command::Enqueue(enqueue);
        let decision = state.decide(&Config::default(), &Facts::default(), 1, &command);
        for (index, event) in (0..).zip(decision.expect("it needs no facts").events) {
            state.apply(1, Position::new(1, index), &event);
        }
        let mut dispatcher = Dispatcher::new([1, 1, 1]);
        assert!(dispatcher.plan(&mut state, 0.1, 1).is_empty(), "nothing goes before a reading");
        let reading = dispatcher.begin_reading();
        dispatcher.judge(&mut state, reading, &HashSet::new());
        let plans = dispatcher.plan(&mut state, 0.1, 1);
        assert_eq!(plans.iter().map(|plan| plan.messages.len()).sum::<usize>(), 1);
        assert!(dispatcher.dispatched(plans[0].class, Ok(())));
        (state, dispatcher, id)
    }

    /// Hazard 5: a second batch behind the same fence waits for the end of the first.
    #[test]
    fn one_dispatch_a_class_is_in_flight() {
        let (mut state, mut dispatcher, id) = dispatched();
        let reading = dispatcher.begin_reading();
        dispatcher.judge(&mut state, reading, &HashSet::new());
        dispatcher.busy[Class::Normal as usize] = true;
        assert!(dispatcher.plan(&mut state, 0.1, 1).is_empty());
        assert!(dispatcher.dispatched(Class::Normal, Ok(())));
        assert_eq!(dispatcher.plan(&mut state, 0.1, 1).len(), 1);
        assert!(dispatcher.is_out(id));
    }

    /// Hazard 2: what a reading did not see may have been dispatched after it began.
    #[test]
    fn a_run_dispatched_during_a_reading_is_not_missing_from_it() {
        let (mut state, mut dispatcher, id) = dispatched();
        let before = dispatcher.readings;
        dispatcher.judge(&mut state, before, &HashSet::new());
        assert!(dispatcher.is_out(id));
        assert!(dispatcher.plan(&mut state, 0.1, 1).is_empty());
    }

    #[test]
    fn a_run_missing_from_a_later_reading_is_dispatched_again() {
        let (mut state, mut dispatcher, id) = dispatched();
        let after = dispatcher.begin_reading();
        dispatcher.judge(&mut state, after, &HashSet::new());
        assert!(!dispatcher.is_out(id));
        let again = dispatcher.plan(&mut state, 0.1, 1);
        assert_eq!(again.iter().map(|plan| plan.messages.len()).sum::<usize>(), 1);
    }

    #[test]
    fn a_run_that_is_in_its_stream_stays_out_and_a_stranger_is_unwanted() {
        let (mut state, mut dispatcher, id) = dispatched();
        let after = dispatcher.begin_reading();
        let stranger = (JobId::from_u128(9), 1);
        let present = HashSet::from([(id, 1), stranger]);
        assert_eq!(dispatcher.judge(&mut state, after, &present), [stranger]);
        assert!(dispatcher.is_out(id));
    }

    #[test]
    fn a_fence_that_somebody_moved_ends_dispatching() {
        let mut dispatcher = Dispatcher::new([1, 1, 1]);
        let moved = mesh::publish::Error::Refused {
            subject: "jobmesh.work.high".into(),
            code: WRONG_LAST_SEQUENCE,
            description: "wrong last sequence".into(),
        };
        assert!(!dispatcher.dispatched(Class::High, Err(moved)));
    }
}
