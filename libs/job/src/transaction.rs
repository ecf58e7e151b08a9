//! One transaction, free of I/O: decides commands, applies their events at once, and packs them
//! into messages of EVENTS.
//!
//! The service appends [`Commit::messages`] in order. Once they are stored, it calls
//! [`Commit::finish`], and only then lets the effects follow. If an append fails, the state in memory
//! is ahead of the disk and must be discarded.

mod packer;

use uuid::Uuid;

use crate::{
    Config, Id, JobId, Lookups, Missing, Position, Run, Scheduler, State,
    bulk::Requester,
    command::Command,
    event::{Change, Event, Transition},
    reply::{Code, Reply},
    time::Millis,
};

pub use packer::Message;
use packer::Packer;

/// Commands that are decided together at one time.
pub struct Transaction<'a> {
    state: &'a mut State,
    scheduler: &'a Scheduler,
    config: &'a Config,
    now: Millis,
    packer: Packer,
    replies: Vec<(Requester, Reply)>,
    stale: Vec<(JobId, Run)>,
}

impl<'a> Transaction<'a> {
    /// Begins a transaction at `now`, which is not before the last event.
    pub fn begin(
        state: &'a mut State,
        scheduler: &'a Scheduler,
        config: &'a Config,
        now: Millis,
    ) -> Self {
        state.wake(now);
        let packer = Packer::new(state, config.message_bytes_max, now);
        Self { state, scheduler, config, now, packer, replies: Vec::new(), stale: Vec::new() }
    }

    /// The last processed message of COMMANDS.
    pub fn through(&self) -> u64 {
        self.state.through()
    }

    /// Begins the message of COMMANDS after `through()`, whose id is `message`. Returns the first item to process: an
    /// earlier leader may have processed the ones before. `None` if the message repeats a recent one.
    pub fn first_item(&mut self, message: Option<Uuid>) -> Option<usize> {
        self.state.begin_message(message);
        self.packer.begin_message(message);
        let is_repeated = message.is_some_and(|id| self.state.is_recent(id));
        (!is_repeated).then(|| self.state.partial().map_or(0, |partial| partial.item as usize))
    }

    /// Processes a command, item `index` of its message. The requester gets a reply with the commit,
    /// or later if a bulk operation starts.
    ///
    /// # Errors
    /// What must be read before the command can be decided. Nothing has changed then.
    pub fn process(
        &mut self,
        index: usize,
        command: &Command,
        mut requester: Option<Requester>,
        lookups: &Lookups,
    ) -> Result<(), Missing> {
        let decision = self.state.decide(self.config, lookups, self.now, command)?;
        self.packer.begin_item(self.state, index);
        let mut starts_bulk = false;
        for mut event in decision.events {
            if let Event::BulkStarted(operation) = &mut event {
                operation.requester = requester.take();
                starts_bulk = true;
            }
            self.record(vec![event]);
        }
        self.packer.end_item(self.state);
        self.stale.extend(decision.stale);
        if !starts_bulk {
            self.replies.extend(requester.map(|requester| (requester, decision.reply)));
        }
        Ok(())
    }

    /// Refuses item `index` of a message without a decision.
    pub fn refuse(
        &mut self,
        index: usize,
        requester: Option<Requester>,
        code: Code,
        error: String,
    ) {
        self.packer.begin_item(self.state, index);
        self.packer.end_item(self.state);
        let reply = Reply::Refused { code, error, retry_after_s: None };
        self.replies.extend(requester.map(|requester| (requester, reply)));
    }

    /// Ends message `sequence` of COMMANDS, whose id is `message`: all its items are processed.
    pub fn end_message(&mut self, sequence: u64, message: Option<Uuid>) {
        if let Some(id) = message {
            self.state.note(self.now, id);
        }
        self.state.processed(sequence);
        self.packer.end_message(sequence, message);
    }

    /// Decides the next slice of a bulk operation. Returns how much work it was: its number of events, or of jobs that
    /// it looked at if that is larger. `None` if no operation is in progress.
    ///
    /// # Errors
    /// What must be read before the slice can be decided. Nothing has changed then.
    pub fn advance_bulk(&mut self, lookups: &Lookups) -> Result<Option<usize>, Missing> {
        let Some(slice) = self.state.decide_slice(lookups, self.now)? else { return Ok(None) };
        let count = slice.events.len().max(usize::try_from(slice.looked_at).unwrap_or(usize::MAX));
        self.record(slice.events);
        self.replies.extend(slice.reply);
        Ok(Some(count))
    }

    /// Requeues a run whose worker is lost; returns false if the run has ended.
    pub fn requeue_lost(&mut self, job: JobId, run: Run) -> bool {
        let event = self.state.decide_lost(job, run);
        let is_lost = event.is_some();
        self.record(event.into_iter().collect());
        is_lost
    }

    /// Cancels jobs that have expired by `until`, a bounded number. Returns how many.
    pub fn expire_due(&mut self, until: Millis) -> usize {
        let events = self.state.decide_expired(until);
        let expired = events.len();
        for event in events {
            self.record(vec![event]);
        }
        expired
    }

    /// Fires a schedule whose time has come, with a new job `id`. The job and the event that the
    /// schedule fired are in one message, or the job could be enqueued twice.
    pub fn fire(&mut self, project: &Id, name: &Id, id: JobId) {
        let events = self.state.decide_fire(self.config, self.now, project, name, id);
        self.record(events);
    }

    /// A schedule whose time has come by `until`: project and name.
    pub fn due_schedule(&self, until: Millis) -> Option<(Id, Id)> {
        self.state.due_schedule(until)
    }

    /// Claims to lead: the next append of the previous leader is refused.
    pub fn claim(&mut self, leader: Id) {
        let term = self.state.term() + 1;
        self.record(vec![Event::LeaderElected {
            term,
            #[cfg(feature = "next-version")]
            hint: Some(leader.clone()),
            leader,
        }]);
    }

    /// Applies events that must be in one message, with the webhook deliveries of the jobs that they
    /// end.
    fn record(&mut self, mut events: Vec<Event>) {
        for event in &mut events {
            self.scheduler.mark(event);
        }
        let deliveries: Vec<Event> =
            events.iter().filter_map(|event| self.state.delivery(self.now, event)).collect();
        events.extend(deliveries);
        self.packer.push(self.state, events);
    }

    /// The messages to append, and the effects that follow.
    pub fn commit(self) -> Commit {
        let (messages, events) = self.packer.finish(self.state);
        let (replies, stale) = (self.replies, self.stale);
        Commit { messages, events, replies, stale, sequences: Vec::new() }
    }
}

/// The end of a transaction.
pub struct Commit {
    /// The messages to append to EVENTS, in order.
    pub messages: Vec<Message>,
    /// The replies to send once they are stored.
    pub replies: Vec<(Requester, Reply)>,
    /// The events at the positions that were planned for them.
    events: Vec<(Position, Event)>,
    /// The sequences at which the messages are stored, in order.
    sequences: Vec<u64>,
    stale: Vec<(JobId, Run)>,
}

impl Commit {
    /// Notes that EVENTS stored the next message as message `sequence`. It is not the planned one if
    /// a message that no state service appended came in between.
    pub fn stored(&mut self, state: &mut State, sequence: u64) {
        state.skip_message(sequence);
        self.sequences.push(sequence);
    }

    /// The events, in order, each at its position: the planned one until its message is stored.
    pub fn events(&self) -> impl Iterator<Item = (Position, &Event)> {
        let first = self.events.first().map_or(0, |(position, _)| position.sequence);
        self.events.iter().map(move |(planned, event)| {
            let message = usize::try_from(planned.sequence - first).unwrap_or(usize::MAX);
            let sequence = self.sequences.get(message).copied().unwrap_or(planned.sequence);
            (Position::new(sequence, planned.index), event)
        })
    }

    /// The changes of status that subscribers see, in order.
    pub fn changes(&self) -> impl Iterator<Item = (Position, Change<'_>)> {
        self.events().filter_map(|(position, event)| Some((position, event.change()?)))
    }

    /// Lets the scheduler know of the events, which are stored. Returns the runs to stop: those whose
    /// work is no longer needed.
    pub fn finish(self, state: &mut State, scheduler: &mut Scheduler) -> Vec<(JobId, Run)> {
        let mut stop = self.stale;
        for (_, event) in &self.events {
            if let Event::Ended(ended) = event {
                let is_canceled = matches!(ended.to, Transition::Canceled { .. });
                if is_canceled && scheduler.is_out(ended.job) {
                    stop.push((ended.job, ended.run));
                }
            }
            scheduler.on_event(state, event);
        }
        stop
    }
}
