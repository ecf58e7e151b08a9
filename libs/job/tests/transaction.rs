//! Transactions, as the leader makes them: large requests, and crashes between their messages.

#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

use job::{
    Config, Id, JobId, Json, Limits, Lookups, Patch, PriorityClass, Scheduler, State,
    bulk::Requester,
    command::{Cancel, Command, Enqueue, NewJob, Project},
    event::Batch,
    reply::{Code, Reply},
    transaction::{Message, Transaction},
    webhook::Webhook,
};
use uuid::Uuid;

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
    Command::Enqueue(Enqueue::new(long("project-".into()), jobs.collect()))
}

/// Processes a message of COMMANDS without an id; returns the messages of EVENTS and the last reply.
fn process(state: &mut State, sequence: u64, commands: &[Command]) -> (Vec<Message>, Reply) {
    process_with(&Config::default(), state, sequence, None, commands)
}

/// The same with other settings and an id.
fn process_with(
    config: &Config,
    state: &mut State,
    sequence: u64,
    id: Option<Uuid>,
    commands: &[Command],
) -> (Vec<Message>, Reply) {
    let scheduler = Scheduler::default();
    let mut transaction = Transaction::begin(state, &scheduler, config, 1);
    let first = transaction.first_item(id).expect("the message repeats none");
    for (index, command) in commands.iter().enumerate().skip(first) {
        let requester = Requester { inbox: "inbox".to_owned(), item: Uuid::nil() };
        let processed = transaction.process(index, command, Some(requester), &Lookups::default());
        processed.expect("it needs no lookups");
    }
    transaction.end_message(sequence, id);
    let commit = transaction.commit();
    let reply = commit.replies.last().map_or(Reply::Noted, |(_, reply)| reply.clone());
    (commit.messages, reply)
}

/// Carries out the next slice of a bulk operation.
fn slice(state: &mut State) -> (Vec<Message>, Option<Reply>) {
    let (scheduler, config) = (Scheduler::default(), Config::default());
    let mut transaction = Transaction::begin(state, &scheduler, &config, 1);
    let advanced = transaction.advance_bulk(&Lookups::default()).expect("it needs no lookups");
    assert!(advanced.is_some(), "an operation is in progress");
    let commit = transaction.commit();
    assert_eq!(commit.messages.len(), 1, "a slice fits one message");
    let reply = commit.replies.first().map(|(_, reply)| reply.clone());
    (commit.messages, reply)
}

fn slices(state: &mut State, max: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    while state.has_bulk() && messages.len() < max {
        messages.extend(slice(state).0);
    }
    messages
}

fn apply(state: &mut State, sequence: u64, message: &Message) {
    let batch: Batch = serde_json::from_slice(&message.payload).expect("a batch is JSON");
    state.apply_batch(sequence, message.through, &batch);
}

/// A restored COMMANDS, and one that lost its end, can have a new message with the sequence of one that was partly processed.
#[test]
fn new_message_in_the_place_of_one_that_was_partly_processed_is_processed_from_its_beginning() {
    let (config, id) = (Config::default(), |n| Some(Uuid::from_u128(n)));
    let mut leader = State::new(1_000);
    let snapshot = written(&leader);
    let commands = [worst(1), worst(1 + BATCHES), worst(1 + 2 * BATCHES)];
    let (messages, _) = process_with(&config, &mut leader, 1, id(1), &commands);
    assert!(messages.len() > 3, "the message is not large enough to be split");
    let cut = || {
        let mut next = restored(&snapshot);
        for (sequence, message) in (1..).zip(&messages[..messages.len() - 1]) {
            apply(&mut next, sequence, message);
        }
        next
    };
    let partial = cut().partial().expect("it is partly processed");
    assert!(partial.item > 0 && partial.message == id(1), "{partial:?}");
    // The same message continues.
    let mut next = cut();
    process_with(&config, &mut next, 1, id(1), &commands);
    assert_eq!(next.counts(None), leader.counts(None));
    // Another one begins.
    let mut next = cut();
    let before = next.counts(None).total();
    let (_, reply) = process_with(&config, &mut next, 1, id(2), &[worst(1 + 9 * BATCHES)]);
    assert!(matches!(reply, Reply::Enqueued { .. }), "{reply:?}");
    assert_eq!(next.counts(None).total(), before + 10_000);
    assert_eq!(next.partial(), None);
}

/// Hazard 17: the worst legal request fits the broker, and a crash between two of its messages
/// neither loses a job nor counts one twice.
#[test]
fn worst_request_fits_and_continues_after_a_crash_between_any_of_its_messages() {
    let mut leader = State::new(1_000);
    let (first, _) = process(&mut leader, 1, &[worst(1)]);
    let snapshot = written(&leader);
    let last = leader.position().sequence;
    let (second, reply) = process(&mut leader, 2, &[worst(1 + BATCHES)]);
    assert_eq!(reply, Reply::Enqueued { canceled: 10_000 });
    assert!(second.len() > 1, "the request is not large enough to be split");
    for message in first.iter().chain(&second) {
        assert!(message.payload.len() < APPEND_BYTES_MAX, "{}", message.payload.len());
    }
    for cut in 1..second.len() {
        let mut next = restored(&snapshot);
        for (sequence, message) in (last + 1..).zip(&second[..cut]) {
            apply(&mut next, sequence, message);
        }
        assert_eq!(next.through(), 1, "the command counts as partly processed");
        let (_, reply) = process(&mut next, 2, &[worst(1 + BATCHES)]);
        assert_eq!(reply, Reply::Enqueued { canceled: 10_000 });
        let counts = next.counts(None);
        assert_eq!((counts.canceled, counts.queued[PriorityClass::Normal]), (10_000, 10_000));
    }
}

#[test]
fn interrupted_cancel_replies_with_the_count_of_all_its_jobs() {
    for has_webhook in [false, true] {
        interrupted_cancel(has_webhook);
    }
}

fn interrupted_cancel(has_webhook: bool) {
    let mut leader = State::new(1_000);
    let project = long("project-".into());
    if has_webhook {
        let webhook = Webhook {
            url: "https://example.com".into(),
            secret: "whsec_".into(),
            previous_secret: None,
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
    let last = leader.position().sequence;
    let cancel = Command::Cancel(Cancel { project, batches: None, idempotency: None });
    let mut cancel = [cancel];
    let (mut messages, _) = process(&mut leader, 3, &cancel);
    messages.extend(slices(&mut leader, usize::MAX));
    assert!(messages.len() > 10, "the cancel is not large enough to be split");
    let mut next = restored(&snapshot);
    for (sequence, message) in (last + 1..).zip(&messages[..5]) {
        apply(&mut next, sequence, message);
    }
    // Jobs that are enqueued during the cancel are not canceled.
    let mut newer = worst(50_000);
    if let Command::Enqueue(enqueue) = &mut newer {
        enqueue.supersede = false;
        enqueue.jobs.truncate(100);
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
    assert_eq!(next.counts(None).queued[PriorityClass::Normal], 100);
    let pending = next.deliveries(&long("project-".into())).pending;
    assert_eq!(pending, if has_webhook { 10_000 } else { 0 });
}

/// Many requests in one message, each over active jobs: an interruption changes no other
/// request's count, even if two leaders in a row fail before the end.
#[test]
fn each_item_of_a_message_is_processed_once_wherever_the_leader_fails() {
    let commands: Vec<Command> = (0..40).map(|n| request(n, 1 + n * 1_000)).collect();
    let again: Vec<Command> = (0..40).map(|n| request(n, 100_000 + n * 1_000)).collect();
    let mut leader = State::new(1_000);
    process(&mut leader, 1, &commands);
    let snapshot = written(&leader);
    let last = leader.position().sequence;
    let (messages, reply) = process(&mut leader, 2, &again);
    assert_eq!(reply, Reply::Enqueued { canceled: 100 });
    assert!(messages.len() > 2, "it is not large enough");
    for cut in 1..messages.len() {
        let mut next = restored(&snapshot);
        for (sequence, message) in (last + 1..).zip(&messages[..cut]) {
            apply(&mut next, sequence, message);
        }
        // A second leader dies after its first message, the third one ends it.
        let second = written(&next);
        let at = next.position().sequence;
        let (more, _) = process(&mut next, 2, &again);
        let mut third = restored(&second);
        if more.len() > 1 {
            apply(&mut third, at + 1, &more[0]);
        }
        let (_, reply) = process(&mut third, 2, &again);
        assert_eq!(reply, Reply::Enqueued { canceled: 100 });
        let counts = third.counts(None);
        assert_eq!((counts.canceled, counts.queued[PriorityClass::Normal]), (4_000, 4_000));
    }
}

/// A request that was accepted before the leader failed is not refused for its rest.
#[test]
fn limit_of_a_project_does_not_cut_an_interrupted_request() {
    let limited = |max_active_jobs| {
        let limits = Limits { max_active_jobs, ..Limits::default() };
        Config { limits, ..Config::default() }
    };
    let enqueue = [worst(1)];
    let (messages, reply) =
        process_with(&limited(10_000), &mut State::new(1_000), 1, None, &enqueue);
    assert_eq!(reply, Reply::Enqueued { canceled: 0 });
    assert!(messages.len() > 1, "the request is not large enough to be split");
    let mut next = State::new(1_000);
    apply(&mut next, 1, &messages[0]);
    // The next leader has a lower limit.
    let (_, reply) = process_with(&limited(1), &mut next, 1, None, &enqueue);
    assert_eq!(reply, Reply::Enqueued { canceled: 0 });
    assert_eq!(next.counts(None).queued[PriorityClass::Normal], 10_000);
    let (_, refused) = process_with(&limited(1), &mut next, 2, None, &[worst(50_000)]);
    assert!(matches!(refused, Reply::Refused { code: Code::LargerThanLimit, .. }), "{refused:?}");
}

/// A request of a hundred batches, which are no other's.
fn request(n: u128, first_id: u128) -> Command {
    let data = Json::of(&"y".repeat(2_000)).expect("a text is JSON");
    let jobs = (0..100).map(|m| NewJob {
        id: JobId::from_u128(first_id + m),
        batch: format!("batch-{n}-{m}").into(),
        data: data.clone(),
    });
    Command::Enqueue(Enqueue::new("p".into(), jobs.collect()))
}
