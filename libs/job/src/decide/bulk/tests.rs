//! What slices of a bulk operation decide.

mod operations;

use super::*;
use crate::{
    Config, JobType, Json, Run,
    command::{Cancel, Command, End, Enqueue, NewJob, Outcome, Retry},
    error_group,
    event::Batch,
};

/// Three slices and a bit.
const JOBS: u128 = 1_600;

struct World {
    state: State,
    sequence: u64,
}

impl World {
    fn new() -> Self {
        Self { state: State::new(1_000_000), sequence: 0 }
    }

    fn apply(&mut self, events: Vec<Event>) {
        self.sequence += 1;
        let batch = Batch { at: 1_000, commands: Vec::new(), events };
        self.state.apply_batch(self.sequence, self.sequence, &batch);
    }

    fn decide(&mut self, command: Command) -> Reply {
        let decision = self.state.decide(&Config::default(), &unread(), 1_000, &command);
        let decision = decision.expect("no key is kept elsewhere");
        self.apply(decision.events);
        decision.reply
    }

    fn slice(&mut self) -> Option<Slice> {
        let slice = self.state.decide_slice(&unread(), 1_000).expect("all is in memory")?;
        self.apply(slice.events.clone());
        Some(slice)
    }

    fn enqueue(&mut self, ids: std::ops::Range<u128>, batch: impl Fn(u128) -> String) {
        let jobs = ids.map(|id| NewJob {
            id: JobId::from_u128(id),
            batch: batch(id).into(),
            data: Json::default(),
        });
        self.decide(Command::Enqueue(Enqueue::new("p".into(), jobs.collect())));
    }

    fn fail(&mut self, id: u128, run: Run) {
        self.fail_with(id, run, "no");
    }

    fn fail_with(&mut self, id: u128, run: Run, error: &str) {
        let job = self.state.job(JobId::from_u128(id)).expect("it is there");
        self.decide(Command::Outcome(Outcome {
            job: job.id,
            run,
            worker: "w".into(),
            labels: crate::JobLabels::job(&job),
            started_at: Some(1),
            finished_at: 2,
            usage: crate::Usage::default(),
            end: End::Reject { error: error.into() },
            token: None,
        }));
    }

    fn status(&self, id: u128) -> Status {
        self.state.job(JobId::from_u128(id)).expect("it is there").status
    }
}

/// The key under which [`keyed`] is asked was never used.
fn unread() -> Lookups {
    let mut lookups = Lookups::default();
    lookups.answers.insert(Digest([7; 16]), None);
    lookups
}

fn keyed(request: u8) -> Option<Idempotency> {
    Some(Idempotency { key: Digest([7; 16]), request: Digest([request; 16]) })
}

fn cancel(idempotency: Option<Idempotency>) -> Command {
    Command::Cancel(Cancel { project: "p".into(), batches: None, idempotency })
}

fn retry(job: Option<u128>, idempotency: Option<Idempotency>) -> Command {
    let job = job.map(JobId::from_u128);
    let filter = JobFilter::default();
    Command::Retry(Retry { project: "p".into(), job, filter, deliveries: false, idempotency })
}

#[test]
fn a_job_that_is_retried_during_a_cancel_is_not_canceled() {
    let mut world = World::new();
    world.enqueue(1..JOBS, |id| id.to_string());
    for id in [3, 1_500] {
        world.fail(id, 1);
    }
    assert_eq!(world.decide(cancel(None)), Reply::Noted);
    world.slice();
    for id in [3, 1_500] {
        assert!(matches!(world.decide(retry(Some(id), None)), Reply::Retried { count: 1, .. }));
    }
    while world.slice().is_some() {}
    for id in [3, 1_500] {
        assert_eq!(world.status(id), Status::Queued);
    }
    let counts = world.state.counts(Some("p"));
    assert_eq!(counts.canceled, JOBS as u64 - 3, "{counts:?}");
}

#[test]
fn failed_jobs_of_one_batch_are_retried_together_unless_a_newer_job_is_active() {
    let mut world = World::new();
    // Ids fall while ages grow: the newest job of each pair is looked at first.
    for id in (1..JOBS).rev() {
        world.enqueue(id..id + 1, |id| (id / 2).to_string());
        world.fail(id, 1);
    }
    world.enqueue(JOBS..JOBS + 1, |_| "1".to_owned());
    world.decide(retry(None, None));
    let mut retried = 0;
    while let Some(slice) = world.slice() {
        retried += slice.events.iter().filter(|event| matches!(event, Event::Retried(_))).count();
    }
    // Both jobs of batch 1 were superseded.
    assert_eq!(retried as u128, JOBS - 1 - 2);
    assert_eq!((world.status(2), world.status(3)), (Status::Failed, Status::Failed));
}

#[test]
fn only_failed_jobs_that_match_are_retried() {
    let mut world = World::new();
    world.enqueue(1..JOBS, |id| id.to_string());
    for id in 1..JOBS {
        let error = format!("{} of page {id}", if id % 3 == 0 { "timeout" } else { "crash" });
        world.fail_with(id, 1, &error);
    }
    let filter = JobFilter {
        error_group: Some(error_group("timeout of page 1")),
        job_type: Some(JobType::ProcessBatch),
        ..JobFilter::default()
    };
    let of_redo = JobFilter { job_type: Some(JobType::ProcessRedo), ..filter.clone() };
    for (filter, expected) in [(of_redo, 0), (filter, JOBS / 3)] {
        let project = "p".into();
        let command = Retry { project, job: None, filter, deliveries: false, idempotency: None };
        world.decide(Command::Retry(command));
        let slices = std::iter::from_fn(|| world.slice());
        let retried = slices.flat_map(|slice| slice.events);
        let retried = retried.filter(|event| matches!(event, Event::Retried(_))).count();
        assert_eq!(retried as u128, expected);
    }
    for id in 1..JOBS {
        let expected = if id % 3 == 0 { Status::Queued } else { Status::Failed };
        assert_eq!(world.status(id), expected, "{id}");
    }
}

#[test]
fn a_key_belongs_to_its_request_while_that_is_in_progress_and_operations_are_bounded() {
    let mut world = World::new();
    world.enqueue(1..JOBS, |id| id.to_string());
    world.fail(7, 1);
    assert_eq!(world.decide(cancel(keyed(1))), Reply::Noted);
    let reused = |reply| matches!(reply, Reply::Refused { code: Code::IdempotencyKeyReused, .. });
    assert!(reused(world.decide(retry(Some(7), keyed(2)))));
    assert_eq!(world.decide(cancel(keyed(1))), Reply::Noted, "a repeat waits for the first");
    for _ in 2..OPERATIONS_MAX {
        world.decide(cancel(None));
    }
    let Reply::Refused { code, error, .. } = world.decide(cancel(None)) else {
        panic!("there are too many operations")
    };
    assert_eq!(code, Code::TooManyOperations, "{error}");
    let replies = std::iter::from_fn(|| world.slice()).filter(|slice| slice.is_last).count();
    assert_eq!(replies, OPERATIONS_MAX);
    let counts = world.state.counts(Some("p"));
    assert_eq!(counts.canceled, JOBS as u64 - 2, "{counts:?}");
    let again = world.decide(cancel(keyed(1)));
    assert_eq!(again, Reply::Canceled { jobs: JOBS as u64 - 2, batches: JOBS as u64 - 2 });
}
