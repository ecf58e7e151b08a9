//! Dispatch: puts the runs that [`job::Scheduler`] chooses into the streams of ready work.
//!
//! A dispatch whose fate is unknown makes the streams be read again, and until then its runs
//! count as out.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use job::{Capacity, Class, JobId, Run, State, event::Event, internal, time::Millis};
use mesh::{
    publish::{Ack, DUPLICATE_ID, LIMITS, Message, WRONG_LAST_SEQUENCE},
    work_queue,
};

/// Runs in one dispatch.
const DISPATCH_RUNS_MAX: usize = 500;
/// How long a class rests after its stream refused a dispatch.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
/// Bytes in one dispatch.
const DISPATCH_BYTES_MAX: usize = 4_000_000;

/// What is out, and the right to put out more.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    fences: [u64; 3],
    busy: [bool; 3],
    /// The last message of each stream, if known: only this leader writes there.
    last: [Option<u64>; 3],
    /// When a class is dispatched to again whose stream refused.
    again_at: [Option<Instant>; 3],
    dispatch: job::Scheduler,
    suspect: bool,
}

/// A dispatch that was made.
pub(crate) struct Sent {
    pub class: Class,
    pub runs: u64,
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
        let dispatch = job::Scheduler::default();
        Self {
            fences,
            busy: [false; 3],
            last: [None; 3],
            again_at: [None; 3],
            dispatch,
            suspect: true,
        }
    }

    /// Whether a run of this job is out.
    pub fn is_out(&self, job: JobId) -> bool {
        self.dispatch.is_out(job)
    }

    /// The jobs with a run that is out.
    pub fn out(&self) -> impl Iterator<Item = JobId> + '_ {
        self.dispatch.out()
    }

    /// Notes on an event, before it is on disk, what only dispatch knows.
    pub fn mark(&self, event: &mut Event) {
        self.dispatch.mark(event);
    }

    /// Takes in an event that is on disk.
    pub fn on_event(&mut self, state: &mut State, event: &Event) {
        self.dispatch.on_event(state, event);
    }

    /// When a project that waits for a permit is checked again.
    pub fn next_reopen(&self) -> Option<Millis> {
        self.dispatch.next_reopen()
    }

    /// When a class whose stream refused a dispatch is next tried again.
    pub fn next_again(&self) -> Option<Instant> {
        let now = Instant::now();
        self.again_at.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// The runs to dispatch now, given the capacity of the online processors. They are in flight
    /// from here on.
    pub fn plan(
        &mut self,
        state: &mut State,
        rules: &job::Config,
        now: Millis,
        capacity: Capacity,
    ) -> Vec<Plan> {
        let mut taken: [(Vec<Message>, usize); 3] = Default::default();
        let rests = self.again_at.map(|at| at.is_some_and(|at| Instant::now() < at));
        loop {
            let busy = [0, 1, 2].map(|class: usize| {
                let (messages, bytes) = &taken[class];
                self.busy[class]
                    || messages.len() >= DISPATCH_RUNS_MAX
                    || *bytes >= DISPATCH_BYTES_MAX
            });
            let next = self.dispatch.next(state, rules, now, capacity, busy, rests);
            let Some(job) = next.and_then(|id| state.job(id)) else { break };
            let whose = internal::receiver_of(&job.project).unwrap_or(&job.project);
            let settings = state.settings(whose);
            let retention_s = u32::try_from(state.retention_ms(whose) / 1_000).unwrap_or(u32::MAX);
            let message =
                work_queue::message(&job, state.max_attempts(&job), retention_s, &settings);
            let (messages, bytes) = &mut taken[job.class as usize];
            *bytes += message.payload.len();
            messages.push(message);
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
    pub fn dispatched(&mut self, sent: &Sent, end: Result<Ack, mesh::publish::Error>) -> bool {
        let class = sent.class;
        self.busy[class as usize] = false;
        let last = self.last[class as usize].take();
        let error = match end {
            Ok(ack) => {
                // If messages are written one by one, the broker may have skipped some.
                if last.is_some_and(|last| ack.sequence != last + sent.runs) {
                    tracing::warn!(class = class.name(), "not all runs were taken");
                    self.suspect = true;
                }
                self.last[class as usize] = Some(ack.sequence);
                return true;
            }
            Err(error) => error,
        };
        if error.is(WRONG_LAST_SEQUENCE) {
            return false;
        }
        let expected = error.is(LIMITS) || error.is(DUPLICATE_ID);
        // A stream that is full stays so for a moment; one that has a run already is read first.
        self.again_at[class as usize] = Some(Instant::now() + REFUSED_PAUSE);
        tracing::warn!(error = %error, class = class.name(), expected, "dispatch to be looked into");
        self.suspect = true;
        true
    }

    /// Returns true once if the streams should be read.
    pub fn take_suspicion(&mut self) -> bool {
        std::mem::take(&mut self.suspect)
    }

    /// The streams should be read soon.
    pub fn suspect(&mut self) {
        self.suspect = true;
    }

    /// A reading of the streams begins; returns its number.
    pub fn begin_reading(&mut self) -> u64 {
        self.dispatch.begin_reading()
    }

    /// Judges by what was in the streams: see [`job::Scheduler::reconcile`].
    pub fn reconcile(
        &mut self,
        state: &mut State,
        reading: u64,
        present: &HashSet<(JobId, Run)>,
    ) -> Vec<(JobId, Run)> {
        self.dispatch.reconcile(state, reading, present)
    }
}

#[cfg(test)]
mod tests {
    use job::{
        Config, Json, Kind, Lookups, Position,
        command::{Command, Enqueue, NewJob},
    };

    use super::*;

    fn plan(dispatcher: &mut Dispatcher, state: &mut State) -> Vec<Plan> {
        let capacity = Capacity { total: 1, kinds: [1, 1, 0] };
        dispatcher.plan(state, &Config::default(), 1, capacity)
    }

    fn sent(class: Class, runs: u64) -> Sent {
        Sent { class, runs }
    }

    fn ack(sequence: u64) -> Result<Ack, mesh::publish::Error> {
        Ok(Ack { sequence, duplicate: false })
    }

    /// Runs that the broker left out without a word are looked for.
    #[test]
    fn a_gap_in_the_sequences_makes_the_streams_be_read() {
        let mut dispatcher = Dispatcher::new([1, 1, 1]);
        assert!(dispatcher.take_suspicion(), "nothing was read yet");
        dispatcher.dispatched(&sent(Class::Low, 5), ack(9));
        dispatcher.dispatched(&sent(Class::Low, 3), ack(12));
        assert!(!dispatcher.take_suspicion());
        dispatcher.dispatched(&sent(Class::Low, 3), ack(14));
        assert!(dispatcher.take_suspicion());
    }

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
            retry: None,
            supersede: true,
            jobs: vec![NewJob { id, batch: "b".into(), data: Json::default() }],
            idempotency: None,
        };
        let command = Command::Enqueue(enqueue);
        let decision = state.decide(&Config::default(), &Lookups::default(), 1, &command);
        for (index, event) in (0..).zip(decision.expect("it needs no facts").events) {
            state.apply(1, Position::new(1, index), &event);
        }
        let mut dispatcher = Dispatcher::new([1, 1, 1]);
        assert!(plan(&mut dispatcher, &mut state).is_empty(), "nothing goes before a reading");
        let reading = dispatcher.begin_reading();
        dispatcher.reconcile(&mut state, reading, &HashSet::new());
        let plans = plan(&mut dispatcher, &mut state);
        assert_eq!(plans.iter().map(|plan| plan.messages.len()).sum::<usize>(), 1);
        assert!(dispatcher.dispatched(&sent(plans[0].class, 1), ack(1)));
        (state, dispatcher, id)
    }

    /// Hazard 5: a second batch behind the same fence waits for the end of the first.
    #[test]
    fn one_dispatch_a_class_is_in_flight() {
        let (mut state, mut dispatcher, id) = dispatched();
        let reading = dispatcher.begin_reading();
        dispatcher.reconcile(&mut state, reading, &HashSet::new());
        dispatcher.busy[Class::Normal as usize] = true;
        assert!(plan(&mut dispatcher, &mut state).is_empty());
        assert!(dispatcher.dispatched(&sent(Class::Normal, 1), ack(2)));
        assert_eq!(plan(&mut dispatcher, &mut state).len(), 1);
        assert!(dispatcher.is_out(id));
    }

    /// Hazard 2: what a reading did not see may have been dispatched after it began.
    #[test]
    fn a_run_dispatched_during_a_reading_is_not_missing_from_it() {
        let (mut state, mut dispatcher, id) = dispatched();
        // The first reading began before the dispatch.
        dispatcher.reconcile(&mut state, 1, &HashSet::new());
        assert!(dispatcher.is_out(id));
        assert!(plan(&mut dispatcher, &mut state).is_empty());
    }

    #[test]
    fn a_run_missing_from_a_later_reading_is_dispatched_again() {
        let (mut state, mut dispatcher, id) = dispatched();
        let after = dispatcher.begin_reading();
        dispatcher.reconcile(&mut state, after, &HashSet::new());
        assert!(!dispatcher.is_out(id));
        let again = plan(&mut dispatcher, &mut state);
        assert_eq!(again.iter().map(|plan| plan.messages.len()).sum::<usize>(), 1);
    }

    #[test]
    fn a_run_that_is_in_its_stream_stays_out_and_a_stranger_is_unwanted() {
        let (mut state, mut dispatcher, id) = dispatched();
        let after = dispatcher.begin_reading();
        let stranger = (JobId::from_u128(9), 1);
        let present = HashSet::from([(id, 1), stranger]);
        assert_eq!(dispatcher.reconcile(&mut state, after, &present), [stranger]);
        assert!(dispatcher.is_out(id));
    }

    /// Waits for a stream that refused end with its rest.
    #[test]
    fn a_class_that_rests_is_looked_at_when_its_rest_is_over() {
        let mut dispatcher = Dispatcher::new([1, 1, 1]);
        assert_eq!(dispatcher.next_again(), None);
        let full = mesh::publish::Error::Refused {
            subject: "jobmesh.work.high".into(),
            code: LIMITS,
            description: "maximum bytes exceeded".into(),
        };
        let asked = Instant::now();
        assert!(dispatcher.dispatched(&sent(Class::High, 1), Err(full)));
        let again = dispatcher.next_again().expect("it is tried again");
        assert!(again >= asked + REFUSED_PAUSE && again <= Instant::now() + REFUSED_PAUSE);
    }

    #[test]
    fn a_fence_that_somebody_moved_ends_dispatching() {
        let mut dispatcher = Dispatcher::new([1, 1, 1]);
        let moved = mesh::publish::Error::Refused {
            subject: "jobmesh.work.high".into(),
            code: WRONG_LAST_SEQUENCE,
            description: "wrong last sequence".into(),
        };
        assert!(!dispatcher.dispatched(&sent(Class::High, 1), Err(moved)));
    }
}
