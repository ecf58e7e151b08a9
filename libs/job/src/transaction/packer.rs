//! Packs events into messages of EVENTS, bounded in bytes.
//!
//! Events are applied as they are packed, at the positions that they will have. If a message of
//! COMMANDS has more events than fit, it continues in the next message of EVENTS; the first ends
//! with a `partial` event and does not count the command as processed. After a crash in between,
//! the next leader processes the command again from the item that `partial` names, over what that
//! item has done already, whose counts `partial` keeps exact.

use std::collections::HashSet;

use uuid::Uuid;

use crate::{
    Id, Partial, Position, State,
    event::{Event, Transition},
    time::Millis,
    version,
};

/// Ids of commands without events that are kept for the next message of EVENTS.
const UNRECORDED_MAX: usize = 1_000;

/// One message of EVENTS, to be appended.
#[derive(Clone, Debug)]
pub struct Message {
    /// The sequence that its events are applied at.
    pub planned: u64,
    /// The last message of COMMANDS that is processed with it.
    pub through: u64,
    /// The version that a reader must know.
    pub required_version: u32,
    /// A [`Batch`](crate::event::Batch) as JSON.
    pub payload: Vec<u8>,
}

/// The open message, and the ones before it.
pub(super) struct Packer {
    at: Millis,
    bytes_max: usize,
    sequence: u64,
    through: u64,
    json: Vec<u8>,
    required_version: u32,
    count: u32,
    commands: Vec<Uuid>,
    /// The id of the current message of COMMANDS.
    message: Option<Uuid>,
    item: Option<Item>,
    messages: Vec<Message>,
    events: Vec<(Position, Event)>,
}

/// The current item of a message of COMMANDS.
struct Item {
    /// How far an earlier leader got with it.
    before: Partial,
    /// The jobs that it has changed since.
    jobs: u64,
    batches: HashSet<Id>,
}

impl Item {
    fn count(&mut self, event: &Event) {
        match event {
            Event::Ended(ended) if matches!(ended.to, Transition::Canceled { .. }) => {
                self.jobs += 1;
                self.batches.insert(ended.labels.batch.clone());
            }
            Event::Retried(_) => self.jobs += 1,
            _ => {}
        }
    }
}

impl Packer {
    /// Packs behind the last event of `state`. A message has at most `bytes_max` bytes of events,
    /// unless events that belong together have more.
    pub fn new(state: &mut State, bytes_max: usize, at: Millis) -> Self {
        Self {
            at,
            bytes_max,
            sequence: state.position().sequence + 1,
            through: state.through(),
            json: Vec::new(),
            required_version: version::FIRST,
            count: 0,
            commands: std::mem::take(&mut state.unrecorded),
            message: None,
            item: None,
            messages: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Begins a message of COMMANDS, with its id.
    pub fn begin_message(&mut self, message: Option<Uuid>) {
        self.message = message;
    }

    /// Begins item `index` of a message of COMMANDS; an earlier leader may have processed a part of
    /// it.
    pub fn begin_item(&mut self, state: &State, index: usize) {
        let item = u32::try_from(index).unwrap_or(u32::MAX);
        let before = Partial { item, ..state.partial().unwrap_or_default() };
        self.item = Some(Item { before, jobs: 0, batches: HashSet::new() });
    }

    /// Ends the item.
    pub fn end_item(&mut self, state: &mut State) {
        self.item = None;
        state.item_processed();
    }

    /// Ends message `sequence` of COMMANDS, whose id is `message`.
    pub fn end_message(&mut self, sequence: u64, message: Option<Uuid>) {
        self.through = sequence;
        self.commands.extend(message);
    }

    /// Applies events and packs them into one message.
    pub fn push(&mut self, state: &mut State, events: Vec<Event>) {
        let json: Vec<Vec<u8>> = events.iter().map(json).collect();
        let bytes: usize = json.iter().map(Vec::len).sum();
        if self.count > 0 && self.json.len() + bytes > self.bytes_max {
            self.break_off(state);
        }
        for (event, json) in events.into_iter().zip(json) {
            if let Some(item) = &mut self.item {
                item.count(&event);
            }
            self.add(state, event, &json);
        }
    }

    /// The messages and their events. Ids of commands that no message records are left to the next
    /// transaction.
    pub fn finish(mut self, state: &mut State) -> (Vec<Message>, Vec<(Position, Event)>) {
        if self.count > 0 {
            self.close();
        }
        let kept = self.commands.len().saturating_sub(UNRECORDED_MAX);
        state.unrecorded = self.commands.split_off(kept);
        (self.messages, self.events)
    }

    fn break_off(&mut self, state: &mut State) {
        if let Some(item) = &self.item {
            let Partial { item: index, jobs, batches, .. } = item.before;
            let partial = Event::Partial {
                item: index,
                jobs: jobs + item.jobs,
                batches: batches + item.batches.len() as u64,
                message: self.message,
            };
            let json = json(&partial);
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
        self.required_version = self.required_version.max(event.required_version());
        state.apply(self.at, position, &event);
        self.events.push((position, event));
    }

    fn close(&mut self) {
        let commands = serde_json::to_string(&self.commands).expect("ids are JSON");
        let mut payload =
            format!(r#"{{"at":{},"commands":{commands},"events":["#, self.at).into_bytes();
        payload.append(&mut self.json);
        payload.extend_from_slice(b"]}");
        let (planned, through, required_version) =
            (self.sequence, self.through, self.required_version);
        self.messages.push(Message { planned, through, required_version, payload });
        self.required_version = version::FIRST;
        self.sequence += 1;
        self.count = 0;
        self.commands.clear();
    }
}

fn json(event: &Event) -> Vec<u8> {
    serde_json::to_vec(event).expect("events are JSON")
}
