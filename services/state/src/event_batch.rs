//! Packing events into messages of EVENTS, bounded in bytes.
//!
//! Events are applied as they are packed, at the position that they will have. A message of
//! COMMANDS with more events than fit goes on in the next message of EVENTS; the first ends with
//! a `partial` event and a `ProjectionWatermark` that does not cover it. After a crash in between it is folded
//! again from the item that `partial` names, over what that item did already, whose counts
//! `partial` keeps exact.

use std::collections::HashSet;

use bytes::Bytes;
use job::{
    Id, Partial, Position, State,
    event::{Event, Transition},
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

/// The result of processing a batch of commands.
pub(crate) struct Packed {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// Their events.
    pub events: Vec<(Position, Event)>,
}

/// Packs the events of one batch of commands.
pub(crate) struct Packer {
    at: Millis,
    sequence: u64,
    through: u64,
    json: Vec<u8>,
    count: u32,
    commands: Vec<Uuid>,
    item: Option<Item>,
    packed: Packed,
}

/// The item at hand of a message of COMMANDS.
struct Item {
    /// How far a leader before was with it.
    before: Partial,
    /// The jobs that it has reached since.
    jobs: u64,
    batches: HashSet<Id>,
}

impl Item {
    fn reach(&mut self, event: &Event) {
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
    /// Packs behind message `last` of EVENTS, which reaches up to command `through`.
    pub fn new(last: u64, through: u64, at: Millis) -> Self {
        Self {
            at,
            sequence: last + 1,
            through,
            json: Vec::new(),
            count: 0,
            commands: Vec::new(),
            item: None,
            packed: Packed { messages: Vec::new(), events: Vec::new() },
        }
    }

    /// Begins an item of a message of COMMANDS, which perhaps goes on where a leader before
    /// left it.
    pub fn begin_item(&mut self, item: u32, before: Partial) {
        self.item =
            Some(Item { before: Partial { item, ..before }, jobs: 0, batches: HashSet::new() });
    }

    /// Ends the item.
    pub fn end_item(&mut self, state: &mut State) {
        self.item = None;
        state.item_processed();
    }

    /// Applies an event and packs it.
    pub fn push(&mut self, state: &mut State, event: Event) {
        self.push_together(state, vec![event]);
    }

    /// Applies events that mean nothing without each other, and packs them into one message,
    /// together with the deliveries that tell of them.
    pub fn push_together(&mut self, state: &mut State, mut events: Vec<Event>) {
        let deliveries: Vec<Event> =
            events.iter().filter_map(|event| state.delivery(self.at, event)).collect();
        events.extend(deliveries);
        let json: Vec<Vec<u8>> = events
            .iter()
            .map(|event| serde_json::to_vec(event).expect("events are JSON"))
            .collect();
        let bytes: usize = json.iter().map(Vec::len).sum();
        if self.count > 0 && self.json.len() + bytes > MESSAGE_BYTES_MAX {
            self.break_off(state);
        }
        for (event, json) in events.into_iter().zip(json) {
            if let Some(item) = &mut self.item {
                item.reach(&event);
            }
            self.add(state, event, &json);
        }
    }

    /// Ends a command: message `sequence` of COMMANDS with the id `message` is processed.
    pub fn end_command(&mut self, sequence: u64, message: Option<Uuid>) {
        self.through = sequence;
        self.commands.extend(message);
    }

    /// The messages and their events.
    pub fn finish(mut self) -> Packed {
        if self.count > 0 {
            self.close();
        }
        self.packed
    }

    fn break_off(&mut self, state: &mut State) {
        if let Some(item) = &self.item {
            let Partial { item: place, jobs, batches } = item.before;
            let partial = Event::Partial {
                item: place,
                jobs: jobs + item.jobs,
                batches: batches + item.batches.len() as u64,
            };
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
        Config, JobId, Json, Kind, Lookups, Patch,
        bulk::Requester,
        command::{Cancel, Command, Enqueue, NewJob, Project},
        event::Batch,
        reply::Reply,
        webhook::Webhook,
    };

    use super::*;

    /// What the broker takes, with room for headers.
    const APPEND_BYTES_MAX: usize = 7_500_000;
    /// The longest id that the API takes.
    const ID_BYTES: usize = 128;
    /// The most batches of one request.
    const BATCHES: u128 = 10_000;

    fn written(state: &State) -> Vec<u8> {
        let mut snapshot = Vec::new();
        state.snapshot().write(&mut snapshot).expect("memory takes it");
        snapshot
    }

    fn restored(snapshot: &[u8]) -> State {
        State::new(1_000).restore(snapshot).expect("it is a snapshot")
    }

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

    /// Folds a message of COMMANDS as the leader does; returns its messages and the last reply.
    fn process(state: &mut State, sequence: u64, commands: &[Command]) -> (Vec<Message>, Reply) {
        let last = state.position().sequence;
        let mut packer = Packer::new(last, state.through(), 1);
        let mut reply = Reply::Noted;
        let partial = state.partial().unwrap_or_default();
        for (item, command) in (0..).zip(commands).skip(partial.item as usize) {
            let before = state.partial().unwrap_or_default();
            packer.begin_item(item, before);
            let decision = state.decide(&Config::default(), &Lookups::default(), 1, command);
            let decision = decision.expect("it needs no facts");
            for mut event in decision.events {
                if let Event::BulkStarted(operation) = &mut event {
                    let (inbox, item) = ("inbox".to_owned(), Uuid::nil());
                    operation.requester = Some(Requester { inbox, item });
                }
                packer.push(state, event);
            }
            packer.end_item(state);
            reply = decision.reply;
        }
        state.processed(sequence);
        packer.end_command(sequence, None);
        (packer.finish().messages, reply)
    }

    /// Carries out the next slice of a bulk operation as the leader does.
    fn slice(state: &mut State) -> (Vec<Message>, Option<Reply>) {
        let slice = state.decide_slice(&Lookups::default(), 1).expect("it needs no facts");
        let slice = slice.expect("an operation is in progress");
        let mut packer = Packer::new(state.position().sequence, state.through(), 1);
        for event in slice.events {
            packer.push(state, event);
        }
        let messages = packer.finish().messages;
        assert_eq!(messages.len(), 1, "a slice fits one message");
        (messages, slice.reply.map(|(_, reply)| reply))
    }

    fn slices(state: &mut State, max: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while state.has_bulk() && messages.len() < max {
            messages.extend(slice(state).0);
        }
        messages
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
        let (first, _) = process(&mut leader, 1, &[worst(1)]);
        let snapshot = written(&leader);
        let begun = leader.position().sequence;
        let (second, reply) = process(&mut leader, 2, &[worst(1 + BATCHES)]);
        assert_eq!(reply, Reply::Enqueued { canceled: 10_000 });
        assert!(second.len() > 1, "the request is not large enough to be split");
        for message in first.iter().chain(&second) {
            assert!(message.payload.len() < APPEND_BYTES_MAX, "{}", message.payload.len());
        }
        for cut in 1..second.len() {
            let mut next = restored(&snapshot);
            for (sequence, message) in (begun + 1..).zip(&second[..cut]) {
                take_in(&mut next, sequence, message);
            }
            assert_eq!(next.through(), 1, "the command counts as partly processed");
            let (_, reply) = process(&mut next, 2, &[worst(1 + BATCHES)]);
            assert_eq!(reply, Reply::Enqueued { canceled: 10_000 });
            let counts = next.counts(None);
            assert_eq!((counts.canceled, counts.queued[1]), (10_000, 10_000));
        }
    }

    #[test]
    fn a_cancel_that_goes_on_after_a_crash_says_how_many_jobs_it_stopped_in_all() {
        for told in [false, true] {
            a_cut_cancel(told);
        }
    }

    fn a_cut_cancel(told: bool) {
        let mut leader = State::new(1_000);
        let project = long("project-".into());
        if told {
            let webhook = Webhook {
                url: "https://example.com".into(),
                secret: "whsec_".into(),
                events: None,
                max_attempts: None,
                retry: None,
            };
            let change = Patch { webhook: Some(Some(webhook)), ..Patch::default() };
            let set = Project { project: project.clone(), change };
            process(&mut leader, 1, &[Command::Project(set)]);
        }
        process(&mut leader, 2, &[worst(1)]);
        let snapshot = written(&leader);
        let begun = leader.position().sequence;
        let cancel = Command::Cancel(Cancel { project, batches: None, idempotency: None });
        let mut cancel = [cancel];
        let (mut messages, _) = process(&mut leader, 3, &cancel);
        messages.extend(slices(&mut leader, usize::MAX));
        assert!(messages.len() > 10, "the cancel is not large enough to be split");
        let mut next = restored(&snapshot);
        for (sequence, message) in (begun + 1..).zip(&messages[..5]) {
            take_in(&mut next, sequence, message);
        }
        // Jobs that are enqueued during the cancel are not canceled.
        let mut newer = worst(50_000);
        if let Command::Enqueue(ask) = &mut newer {
            ask.supersede = false;
            ask.jobs.truncate(100);
        }
        process(&mut next, 4, &[newer]);
        cancel[0] =
            Command::Cancel(Cancel { project: "other".into(), batches: None, idempotency: None });
        // Another project's cancel does not wait for the end of this one.
        let (_, other) = process(&mut next, 5, &cancel);
        assert_eq!(other, Reply::Canceled { jobs: 0, batches: 0 });
        let replies = std::iter::from_fn(|| next.has_bulk().then(|| slice(&mut next).1));
        let replies: Vec<Reply> = replies.flatten().collect();
        assert_eq!(replies, [Reply::Canceled { jobs: 10_000, batches: 10_000 }]);
        assert_eq!(next.counts(None).queued[1], 100);
        let pending = next.deliveries(&long("project-".into())).pending;
        assert_eq!(pending, if told { 10_000 } else { 0 });
    }

    /// Many requests in one message, each over active jobs: an interruption changes no other
    /// request's count, even if two leaders in a row fail before the end.
    #[test]
    fn each_item_of_a_message_is_folded_once_whatever_is_broken_off() {
        let commands: Vec<Command> = (0..40).map(|n| request(n, 1 + n * 1_000)).collect();
        let again: Vec<Command> = (0..40).map(|n| request(n, 100_000 + n * 1_000)).collect();
        let mut leader = State::new(1_000);
        process(&mut leader, 1, &commands);
        let snapshot = written(&leader);
        let begun = leader.position().sequence;
        let (messages, reply) = process(&mut leader, 2, &again);
        assert_eq!(reply, Reply::Enqueued { canceled: 100 });
        assert!(messages.len() > 2, "it is not large enough");
        for cut in 1..messages.len() {
            let mut next = restored(&snapshot);
            for (sequence, message) in (begun + 1..).zip(&messages[..cut]) {
                take_in(&mut next, sequence, message);
            }
            // A second leader dies after its first message, the third one ends it.
            let second = written(&next);
            let at = next.position().sequence;
            let (more, _) = process(&mut next, 2, &again);
            let mut third = restored(&second);
            if more.len() > 1 {
                take_in(&mut third, at + 1, &more[0]);
            }
            let (_, reply) = process(&mut third, 2, &again);
            assert_eq!(reply, Reply::Enqueued { canceled: 100 });
            let counts = third.counts(None);
            assert_eq!((counts.canceled, counts.queued[1]), (4_000, 4_000));
        }
    }

    /// A request of a hundred batches, which are no other's.
    fn request(n: u128, first_id: u128) -> Command {
        let data = Json::of(&"y".repeat(2_000)).expect("a text is JSON");
        let jobs = (0..100).map(|m| NewJob {
            id: JobId::from_u128(first_id + m),
            batch: format!("batch-{n}-{m}").into(),
            data: data.clone(),
        });
        Command::Enqueue(Enqueue {
            project: "p".into(),
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
}
