//! What operations change, count and report.

use super::{World, *};
use crate::{
    command::{AbortOperation, OperationCommand, StartOperation},
    operation::{Operation, OperationStatus},
    preview::{PreviewCursor, PreviewSlice},
};

fn start(action: OperationAction, project: Option<&str>, filter: JobFilter) -> Command {
    let projects = project.map(|project| vec![project.into()]);
    let operation = Operation::new(uuid::Uuid::now_v7(), action, projects, filter);
    let start = StartOperation { operation, idempotency: None };
    Command::Operation(OperationCommand::Start(Box::new(start)))
}

impl World {
    fn operation(&self) -> &Operation {
        self.state.operations().next().expect("one was started")
    }

    fn finish(&mut self) -> &Operation {
        while self.slice().is_some() {}
        let operation = self.operation();
        assert_eq!(operation.status, OperationStatus::Finished);
        operation
    }

    /// All slices of a preview as one.
    fn preview(&self, action: OperationAction, filter: &JobFilter) -> PreviewSlice {
        let mut whole = PreviewSlice::default();
        let mut from: Option<PreviewCursor> = None;
        loop {
            let slice = self.state.preview(action, filter, None, from.as_ref(), 3, 1_000);
            whole.counts.extend(slice.counts);
            whole.samples.extend(slice.samples);
            whole.unread.extend(slice.unread);
            from = slice.next;
            if from.is_none() {
                return whole;
            }
        }
    }
}

fn counted(preview: &PreviewSlice) -> u64 {
    preview.counts.iter().map(|(.., jobs)| jobs).sum()
}

#[test]
fn an_operation_changes_what_its_preview_counts_and_says_how_far_it_is() {
    let mut world = World::new();
    world.enqueue(1..JOBS, |id| (id % 4).to_string());
    for id in (4..JOBS).step_by(4) {
        world.fail(id, 1);
    }
    let failed = (JOBS as u64 - 1) / 4;
    let of_batch = JobFilter { batch: Some("1".into()), ..JobFilter::default() };
    let of_group = JobFilter { error_group: Some(error_group("no")), ..JobFilter::default() };
    let other_group = JobFilter { error_group: Some(error_group("yes")), ..JobFilter::default() };
    for (action, filter, expected) in [
        (OperationAction::Retry, other_group, 0),
        (OperationAction::Retry, of_group, failed),
        (OperationAction::Cancel, of_batch.clone(), JOBS as u64 / 4),
        (OperationAction::Cancel, of_batch, 0),
        (
            OperationAction::SetPriority { priority: 3 },
            JobFilter::default(),
            JOBS as u64 / 4 * 3 - 1,
        ),
        (OperationAction::Cancel, JobFilter::default(), JOBS as u64 / 4 * 3 - 1),
    ] {
        let preview = world.preview(action, &filter);
        assert_eq!(counted(&preview), expected, "{action:?} {filter:?}");
        assert_eq!(preview.samples.is_empty(), expected == 0);
        world.decide(start(action, None, filter.clone()));
        let operation = world.finish();
        assert_eq!((operation.changed, operation.skipped), (expected, 0), "{operation:?}");
        assert_eq!(operation.looked_at, operation.candidates, "{operation:?}");
    }
    assert_eq!(world.state.counts(None).active(), 0);
}

#[test]
fn an_operation_can_be_aborted_by_those_who_see_it() {
    let mut world = World::new();
    world.enqueue(1..20_000, |id| id.to_string());
    let abort = |operation, projects: Option<Vec<Id>>| {
        let abort = AbortOperation { operation, projects, requested_by: Some("me".into()) };
        Command::Operation(OperationCommand::Abort(abort))
    };
    // Nothing matches: each slice looks at many jobs.
    let filter = JobFilter { created_before: Some(1), ..JobFilter::default() };
    world.decide(start(OperationAction::Cancel, Some("p"), filter));
    world.slice();
    assert!(world.operation().looked_at > 0);
    let id = world.operation().id;
    let refused = world.decide(abort(id, Some(vec!["q".into()])));
    assert!(matches!(refused, Reply::Refused { code: Code::OperationNotFound, .. }), "{refused:?}");
    let Reply::Operation(reply) = world.decide(abort(id, Some(vec!["p".into()]))) else {
        panic!("it is aborted")
    };
    assert_eq!(*reply, *world.operation());
    assert_eq!(reply.status, OperationStatus::Aborted);
    assert!(!world.state.has_bulk(), "nothing is left to do");
}

#[test]
fn a_new_priority_moves_queued_jobs_and_leaves_those_in_flight_where_they_are() {
    let mut world = World::new();
    world.enqueue(1..4, |id| id.to_string());
    let mut scheduler = crate::Scheduler::default();
    let reading = scheduler.begin_reading();
    scheduler.reconcile(&mut world.state, reading, &HashSet::new());
    let capacity = crate::Capacity { total: 9, job_types: [9; JobType::EVERY.len()] };
    let mut next = |state: &mut State| {
        let config = Config::default();
        scheduler.next(state, &config, 1_000, capacity, Default::default(), Default::default())
    };
    assert_eq!(next(&mut world.state), Some(JobId::from_u128(1)));
    let first = JobFilter { jobs: Some(vec![JobId::from_u128(3)]), ..JobFilter::default() };
    world.decide(start(OperationAction::SetPriority { priority: 0 }, Some("p"), first));
    assert_eq!(world.finish().changed, 1);
    world.decide(start(
        OperationAction::SetPriority { priority: 900 },
        Some("p"),
        JobFilter { jobs: Some(vec![JobId::from_u128(1)]), ..JobFilter::default() },
    ));
    while world.slice().is_some() {}
    let counts = world.state.counts(Some("p"));
    assert_eq!(counts.queued.iter().copied().collect::<Vec<_>>(), [1, 1, 1], "{counts:?}");
    let order = std::iter::from_fn(|| next(&mut world.state)).collect::<Vec<_>>();
    assert_eq!(order, [3, 2].map(JobId::from_u128), "the first is not dispatched twice");
}

#[test]
fn a_start_that_is_decided_again_starts_nothing_and_history_is_bounded_by_project() {
    let mut world = World::new();
    world.enqueue(1..4, |id| id.to_string());
    let all = || JobFilter::default();
    let again = start(OperationAction::Cancel, Some("p"), all());
    let Reply::Operation(first) = world.decide(again.clone()) else { panic!("it starts") };
    let Reply::Operation(second) = world.decide(again) else { panic!("it is known") };
    assert_eq!((first.id, world.state.operations().count()), (second.id, 1));
    world.finish();
    // Others that name no job of theirs end at once, and push out none of this project.
    for _ in 0..300 {
        world.decide(start(OperationAction::Cancel, Some("q"), all()));
    }
    let of = |project: &str| {
        let is_named = |it: &&Operation| it.projects.as_deref() == Some(&[project.into()]);
        world.state.operations().filter(is_named).count()
    };
    assert_eq!((of("p"), of("q")), (1, 100));
}

#[test]
fn named_jobs_are_looked_for_in_the_projects_that_have_them() {
    let mut world = World::new();
    world.enqueue(1..4, |id| id.to_string());
    let jobs = Some([2, 9].map(JobId::from_u128).to_vec());
    let filter = JobFilter { jobs, ..JobFilter::default() };
    world.decide(start(OperationAction::Cancel, None, filter));
    let operation = world.operation();
    assert_eq!((operation.candidates, operation.projects_left), (1, 1));
    assert_eq!(world.finish().changed, 1);
}
