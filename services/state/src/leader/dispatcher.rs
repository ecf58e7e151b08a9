//! Dispatch: puts the runs that [`job::Scheduler`] chooses into the streams of ready work.
//!
//! After a dispatch whose result is unknown, the streams must be read again; until then its runs
//! count as in flight.

use std::time::{Duration, Instant};

use job::{ByClass, Capacity, PriorityClass, internal};
use nats::{
    publish::{self, Ack, DUPLICATE_ID, LIMITS, Message, WRONG_LAST_SEQUENCE},
    work_queue::{self, WorkFence},
};

use super::{core::Core, step_down::StepDown};
use crate::measurements;

/// Runs in one dispatch.
const DISPATCH_RUNS_MAX: usize = 500;
/// Bytes in one dispatch.
const DISPATCH_BYTES_MAX: usize = 4_000_000;
/// How long a class pauses after its stream refused a dispatch.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);

/// Dispatches, one at a time for each class.
#[derive(Debug)]
pub(super) struct Dispatcher {
    fences: ByClass<WorkFence>,
    is_busy: ByClass<bool>,
    /// The last message of each stream, if known: only this leader writes there. It is unknown after a
    /// dispatch that failed.
    last: ByClass<Option<u64>>,
    /// When a class is dispatched again after its stream refused a dispatch.
    resume_at: ByClass<Option<Instant>>,
    /// True until the streams have been read: they may not have the runs that count as in flight.
    is_in_doubt: bool,
}

/// A dispatch that was made.
pub(super) struct Sent {
    pub priority_class: PriorityClass,
    pub runs: u64,
}

/// A dispatch to make.
pub(super) struct Dispatch {
    pub priority_class: PriorityClass,
    pub fence: WorkFence,
    pub messages: Vec<Message>,
}

impl Dispatcher {
    /// Dispatches behind these fences, once the streams were read.
    pub fn new(fences: ByClass<WorkFence>) -> Self {
        let last = ByClass::from_fn(|class| Some(fences[class].sequence));
        Self {
            fences,
            is_busy: ByClass::default(),
            last,
            resume_at: ByClass::default(),
            is_in_doubt: true,
        }
    }

    /// The dispatches to make now, given the capacity of the online processors. Their runs are in
    /// flight from here on.
    pub fn due(&mut self, core: &mut Core, capacity: Capacity) -> Vec<Dispatch> {
        let now = core.now();
        let Core { state, scheduler, rules, run_tokens, .. } = core;
        let mut taken: ByClass<(Vec<Message>, usize)> = ByClass::default();
        let pauses = self.resume_at.map(|at| at.is_some_and(|at| Instant::now() < at));
        loop {
            let busy = ByClass::from_fn(|class| {
                let (messages, bytes) = &taken[class];
                self.is_busy[class]
                    || messages.len() >= DISPATCH_RUNS_MAX
                    || *bytes >= DISPATCH_BYTES_MAX
            });
            let next = scheduler.next(state, rules, now, capacity, busy, pauses);
            let Some(job) = next.and_then(|id| state.job(id)) else { break };
            let owner = internal::receiver_of(&job.project).unwrap_or(&job.project);
            let settings = state.settings(owner);
            let retention_s = u32::try_from(state.retention_ms(owner) / 1_000).unwrap_or(u32::MAX);
            let token = run_tokens.token(job.id, job.run);
            let max_attempts = state.max_attempts(&job);
            let message = work_queue::message(&job, token, max_attempts, retention_s, &settings);
            let (messages, bytes) = &mut taken[job.priority_class];
            *bytes += message.payload.len();
            messages.push(message);
        }
        let mut dispatches = Vec::new();
        for (class, (messages, _)) in taken.into_entries() {
            if !messages.is_empty() {
                self.is_busy[class] = true;
                dispatches.push(Dispatch {
                    priority_class: class,
                    fence: self.fences[class],
                    messages,
                });
            }
        }
        dispatches
    }

    /// Receives the result of a dispatch.
    ///
    /// # Errors
    /// If another leader has moved the fence of the stream.
    pub fn done(
        &mut self,
        sent: &Sent,
        result: Result<Ack, publish::Error>,
    ) -> Result<(), StepDown> {
        let class = sent.priority_class;
        self.is_busy[class] = false;
        let last = self.last[class].take();
        let error = match result {
            Ok(ack) => {
                // If messages are written one by one, some may have been refused or lost.
                let all = match last {
                    Some(last) => ack.sequence == last + sent.runs,
                    None => sent.runs == 1,
                };
                if !all {
                    tracing::warn!(class = class.name(), "not all runs were taken");
                    self.is_in_doubt = true;
                }
                self.last[class] = Some(ack.sequence);
                measurements::dispatched(sent.runs);
                return Ok(());
            }
            Err(error) => error,
        };
        if error.is(WRONG_LAST_SEQUENCE) {
            return Err(StepDown::DispatchRefused);
        }
        let expected = error.is(LIMITS) || error.is(DUPLICATE_ID);
        // A full stream stays full for a moment; one that has a run already is read first.
        self.resume_at[class] = Some(Instant::now() + REFUSED_PAUSE);
        tracing::warn!(error = %error, class = class.name(), expected, "runs not dispatched");
        self.is_in_doubt = true;
        Ok(())
    }

    /// When a class is next dispatched after its stream refused a dispatch.
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        self.resume_at.iter().flatten().copied().filter(|at| *at > now).min()
    }

    /// The streams may not have the runs that count as in flight.
    pub fn doubt(&mut self) {
        self.is_in_doubt = true;
    }

    /// Returns true once if the streams should be read.
    pub fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.is_in_doubt)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use job::JobId;

    use super::*;

    const CAPACITY: Capacity = Capacity { total: 1, job_types: [1, 1, 0] };

    fn sent(class: PriorityClass, runs: u64) -> Sent {
        Sent { priority_class: class, runs }
    }

    fn ack(sequence: u64) -> Result<Ack, publish::Error> {
        Ok(Ack { sequence, duplicate: false })
    }

    fn refused(code: u64) -> Result<Ack, publish::Error> {
        let subject = "jobmesh.work.high".into();
        Err(publish::Error::Refused { subject, code, description: "refused".into() })
    }

    fn runs(dispatches: &[Dispatch]) -> usize {
        dispatches.iter().map(|dispatch| dispatch.messages.len()).sum()
    }

    fn dispatcher() -> Dispatcher {
        let fence = WorkFence { sequence: 1, acks_before_sync: true };
        Dispatcher::new(ByClass::from_fn(|_| fence))
    }

    /// A leader with one queued job, and a dispatcher that has put it into its stream.
    fn dispatched() -> (Core, Dispatcher, JobId) {
        let id = JobId::from_u128(1);
        let (mut core, mut dispatcher) = (Core::with_queued_job(id), dispatcher());
        assert!(dispatcher.due(&mut core, CAPACITY).is_empty(), "nothing goes before a reading");
        read(&mut core, &[]);
        let dispatches = dispatcher.due(&mut core, CAPACITY);
        assert_eq!(runs(&dispatches), 1);
        dispatcher.done(&sent(dispatches[0].priority_class, 1), ack(2)).expect("it leads");
        (core, dispatcher, id)
    }

    /// Reads the streams and reconciles; returns the unwanted runs.
    fn read(core: &mut Core, present: &[(JobId, u32)]) -> Vec<(JobId, u32)> {
        let reading = core.scheduler.begin_reading();
        core.scheduler.reconcile(&mut core.state, reading, &present.iter().copied().collect())
    }

    #[test]
    fn gap_in_the_sequences_puts_the_streams_in_doubt() {
        let mut dispatcher = dispatcher();
        assert!(dispatcher.take_doubt(), "nothing was read yet");
        dispatcher.done(&sent(PriorityClass::Low, 5), ack(6)).expect("it leads");
        dispatcher.done(&sent(PriorityClass::Low, 3), ack(9)).expect("it leads");
        assert!(!dispatcher.take_doubt());
        dispatcher.done(&sent(PriorityClass::Low, 3), ack(14)).expect("it leads");
        assert!(dispatcher.take_doubt());
        // What an error leaves open hides no gap.
        dispatcher.done(&sent(PriorityClass::Low, 3), refused(LIMITS)).expect("it leads");
        assert!(dispatcher.take_doubt());
        dispatcher.done(&sent(PriorityClass::Low, 2), ack(15)).expect("it leads");
        assert!(dispatcher.take_doubt());
    }

    /// Hazard 5: a second batch behind the same fence waits for the end of the first.
    #[test]
    fn each_class_has_one_dispatch_in_flight() {
        let (mut core, mut dispatcher, id) = dispatched();
        read(&mut core, &[]);
        dispatcher.is_busy[PriorityClass::Normal] = true;
        assert!(dispatcher.due(&mut core, CAPACITY).is_empty());
        dispatcher.done(&sent(PriorityClass::Normal, 1), ack(3)).expect("it leads");
        assert_eq!(dispatcher.due(&mut core, CAPACITY).len(), 1);
        assert!(core.scheduler.is_out(id));
    }

    /// Hazard 2: a run that a reading did not find may have been dispatched after it started.
    #[test]
    fn run_dispatched_during_a_reading_is_not_missing_from_it() {
        let (mut core, mut dispatcher, id) = dispatched();
        // The first reading started before the dispatch.
        core.scheduler.reconcile(&mut core.state, 1, &HashSet::new());
        assert!(core.scheduler.is_out(id));
        assert!(dispatcher.due(&mut core, CAPACITY).is_empty());
    }

    #[test]
    fn run_missing_from_a_later_reading_is_dispatched_again() {
        let (mut core, mut dispatcher, id) = dispatched();
        read(&mut core, &[]);
        assert!(!core.scheduler.is_out(id));
        assert_eq!(runs(&dispatcher.due(&mut core, CAPACITY)), 1);
    }

    #[test]
    fn unknown_run_in_a_stream_is_unwanted() {
        let (mut core, _, id) = dispatched();
        let unknown = (JobId::from_u128(9), 1);
        assert_eq!(read(&mut core, &[(id, 1), unknown]), [unknown]);
        assert!(core.scheduler.is_out(id));
    }

    #[test]
    fn class_is_retried_after_its_pause() {
        let mut dispatcher = dispatcher();
        assert_eq!(dispatcher.deadline(), None);
        let before = Instant::now();
        dispatcher.done(&sent(PriorityClass::High, 1), refused(LIMITS)).expect("it leads");
        let deadline = dispatcher.deadline().expect("it is tried again");
        assert!(deadline >= before + REFUSED_PAUSE && deadline <= Instant::now() + REFUSED_PAUSE);
    }

    #[test]
    fn moved_fence_ends_leading() {
        let mut dispatcher = dispatcher();
        let result = dispatcher.done(&sent(PriorityClass::High, 1), refused(WRONG_LAST_SEQUENCE));
        assert!(matches!(result, Err(StepDown::DispatchRefused)));
    }
}
