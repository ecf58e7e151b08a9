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
