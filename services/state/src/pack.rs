//! Packing events into messages of EVENTS, bounded in bytes.
//!
//! Events are applied as they are packed, at the position that they will have. A command with
//! more events than fit goes on in the next message, whose `Through` does not yet cover it: after
//! a crash in between it is folded again, over what its first part did, and the `partial` event
//! keeps its counts exact.

use std::collections::HashSet;

use bytes::Bytes;
use job::{
    Id, Position, State,
    event::{Became, Event},
    time::Millis,
};
use uuid::Uuid;

/// The most bytes of one message of EVENTS, but for a single event that is larger: half of the
/// broker's `max_payload`.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4_000_000;

/// One message of EVENTS, ready to be appended.
pub(crate) struct Message {
    pub through: u64,
    pub payload: Bytes,
}

/// What came of a fold.
pub(crate) struct Packed {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// Their events.
    pub events: Vec<(Position, Event)>,
}

/// Packs the events of one fold.
pub(crate) struct Packer {
    at: Millis,
    sequence: u64,
    through: u64,
    json: Vec<u8>,
    count: u32,
    commands: Vec<Uuid>,
    reached: Reached,
    packed: Packed,
}

/// The jobs and batches that the command at hand has reached.
#[derive(Default)]
struct Reached {
    jobs: u64,
    batches: HashSet<Id>,
}

impl Packer {
    /// Packs behind message `last` of EVENTS, which reaches up to command `through`.
    pub fn new(last: u64, through: u64, at: Millis) -> Self {
        Self {
            at,
            sequence: last + 1,
            through,
            json: Vec::new(),
            count: 0,
            commands: Vec::new(),
            reached: Reached::default(),
            packed: Packed { messages: Vec::new(), events: Vec::new() },
        }
    }

    /// Applies an event and packs it.
    pub fn push(&mut self, state: &mut State, event: Event) {
        let json = serde_json::to_vec(&event).expect("events are JSON");
        if self.count > 0 && self.json.len() + json.len() > MESSAGE_BYTES_MAX {
            self.break_off(state);
        }
        if let Event::Ended(ended) = &event
            && matches!(ended.to, Became::Canceled { .. })
        {
            self.reached.jobs += 1;
            self.reached.batches.insert(ended.about.batch.clone());
        }
        if let Event::Revived(_) = &event {
            self.reached.jobs += 1;
        }
        self.add(state, event, &json);
    }

    /// Ends a command: message `sequence` of COMMANDS with the id `message` is folded.
    pub fn end_command(&mut self, sequence: u64, message: Option<Uuid>) {
        self.through = sequence;
        self.commands.extend(message);
        self.reached = Reached::default();
    }

    /// The messages and their events.
    pub fn finish(mut self) -> Packed {
        if self.count > 0 {
            self.close();
        }
        self.packed
    }

    fn break_off(&mut self, state: &mut State) {
        let reached = &self.reached;
        if reached.jobs > 0 {
            let (jobs, batches) = (reached.jobs, reached.batches.len() as u64);
            let partial = Event::Partial { jobs, batches };
            let json = serde_json::to_vec(&partial).expect("events are JSON");
            self.add(state, partial, &json);
        }
        self.close();
    }

    fn add(&mut self, state: &mut State, event: Event, json: &[u8]) {
        let position = Position::new(self.sequence, self.count);
        if self.count > 0 {
            self.json.push(b',');
        }
        self.json.extend_from_slice(json);
        self.count += 1;
        state.apply(self.at, position, &event);
        self.packed.events.push((position, event));
    }

    fn close(&mut self) {
        let commands = serde_json::to_string(&self.commands).expect("ids are JSON");
        let mut payload =
            format!(r#"{{"at":{},"commands":{commands},"events":["#, self.at).into_bytes();
        payload.append(&mut self.json);
        payload.extend_from_slice(b"]}");
        self.packed.messages.push(Message { through: self.through, payload: payload.into() });
        self.sequence += 1;
        self.count = 0;
        self.commands.clear();
    }
}

#[cfg(test)]
mod tests {
    use job::{
        Config, Facts, JobId, Json, Kind,
        command::{Cancel, Command, Enqueue, NewJob},
        event::Batch,
        reply::Reply,
    };

    use super::*;

    /// What the broker takes, with room for headers.
    const APPEND_BYTES_MAX: usize = 7_500_000;
    /// The longest id that the API takes.
    const ID_BYTES: usize = 128;
    /// The most batches of one request.
    const BATCHES: u128 = 10_000;

    fn long(text: String) -> Id {
        format!("{text:x<ID_BYTES$}").into()
    }

    /// A request of the most batches, whose body is as large as the edge lets pass.
    fn worst(first_id: u128) -> Command {
        let data = Json::of(&"y".repeat(200)).expect("a text is JSON");
        let jobs = (0..BATCHES).map(|n| NewJob {
            id: JobId::from_u128(first_id + n),
            batch: long(format!("batch-{n}-")),
            data: data.clone(),
        });
        Command::Enqueue(Enqueue {
            project: long("project-".into()),
            kind: Kind::ProcessBatch,
            priority: 10,
            run_at: None,
            max_attempts: None,
            retry: None,
            supersede: true,
            jobs: jobs.collect(),
            idempotency: None,
        })
    }

    /// Folds a command as the leader does; returns its messages and its reply.
    fn fold(state: &mut State, sequence: u64, command: &Command) -> (Vec<Message>, Reply) {
        let last = state.position().sequence;
        let mut packer = Packer::new(last, state.through(), 1);
        let decision = state.decide(&Config::default(), &Facts::default(), 1, command);
        let decision = decision.expect("it needs no facts");
        for event in decision.events {
            packer.push(state, event);
        }
        state.folded(sequence);
        packer.end_command(sequence, None);
        (packer.finish().messages, decision.reply)
    }

    fn take_in(state: &mut State, sequence: u64, message: &Message) {
        let batch: Batch = serde_json::from_slice(&message.payload).expect("a batch is JSON");
        state.apply_batch(sequence, message.through, &batch);
    }

    /// Hazard 17: the worst legal request fits the broker, and a crash between two of its messages
    /// neither loses a job nor counts one twice.
    #[test]
    fn the_worst_request_fits_and_goes_on_after_a_crash_between_any_of_its_messages() {
        let mut leader = State::new(1_000);
        let (first, _) = fold(&mut leader, 1, &worst(1));
        let snapshot = leader.snapshot().expect("it is JSON");
        let begun = leader.position().sequence;
        let (second, reply) = fold(&mut leader, 2, &worst(1 + BATCHES));
        assert_eq!(reply, Reply::Enqueued { canceled: 10_000 });
        assert!(second.len() > 1, "the request is not large enough to be split");
        for message in first.iter().chain(&second) {
            assert!(message.payload.len() < APPEND_BYTES_MAX, "{}", message.payload.len());
        }
        for cut in 1..second.len() {
            let mut next = State::restore(&snapshot, 1_000).expect("it is a snapshot");
            for (sequence, message) in (begun + 1..).zip(&second[..cut]) {
                take_in(&mut next, sequence, message);
            }
            assert_eq!(next.through(), 1, "the command counts as folded in part");
            let (_, reply) = fold(&mut next, 2, &worst(1 + BATCHES));
            assert_eq!(reply, Reply::Enqueued { canceled: 10_000 });
            let counts = next.counts(None);
            assert_eq!((counts.canceled, counts.queued[1]), (10_000, 10_000));
        }
    }

    #[test]
    fn a_cancel_that_goes_on_after_a_crash_says_how_many_jobs_it_stopped_in_all() {
        let mut leader = State::new(1_000);
        let project = long("project-".into());
        fold(&mut leader, 1, &worst(1));
        let snapshot = leader.snapshot().expect("it is JSON");
        let begun = leader.position().sequence;
        let cancel = Command::Cancel(Cancel { project, batches: None, idempotency: None });
        let (messages, reply) = fold(&mut leader, 2, &cancel);
        assert_eq!(reply, Reply::Canceled { jobs: 10_000, batches: 10_000 });
        assert!(messages.len() > 1, "the cancel is not large enough to be split");
        let mut next = State::restore(&snapshot, 1_000).expect("it is a snapshot");
        take_in(&mut next, begun + 1, &messages[0]);
        let (_, again) = fold(&mut next, 2, &cancel);
        assert_eq!(again, reply);
    }
}
