//! The order in which queued jobs are dispatched.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use job::{
    ByClass, Config, Gate, JobId, Lookups, OpenJobTypes, Scheduler, State,
    command::{Command, Enqueue, NewJob},
    transaction::Transaction,
};

/// All classes and kinds may be dispatched.
fn all() -> OpenJobTypes {
    ByClass::from_fn(|_| [true; 3])
}

fn enqueue(state: &mut State, sequence: u64, project: &str, jobs: &[(u128, u16)]) {
    let (scheduler, config) = (Scheduler::default(), Config::default());
    let mut transaction = Transaction::begin(state, &scheduler, &config, 1);
    for (index, (id, priority)) in jobs.iter().enumerate() {
        let job = NewJob::new(JobId::from_u128(*id), format!("{id}").into());
        let enqueue = Enqueue { priority: *priority, ..Enqueue::new(project.into(), vec![job]) };
        let command = Command::Enqueue(enqueue);
        transaction.process(index, &command, None, &Lookups::default()).unwrap();
    }
    transaction.end_message(sequence, None);
    transaction.commit();
}

#[test]
fn dispatch_goes_by_class_then_round_robin_over_projects_then_by_number_and_age() {
    let mut state = State::new(1_000_000);
    enqueue(&mut state, 1, "a", &[(1, 9), (2, 7), (3, 7), (4, 8)]);
    enqueue(&mut state, 2, "b", &[(5, 10), (6, 10)]);
    enqueue(&mut state, 3, "b", &[(7, 0)]);
    let order: Vec<u128> =
        std::iter::from_fn(|| state.ready().next(0, all(), ByClass::default(), |_| Gate::Open(1)))
            .map(|id| id.as_u128())
            .collect();
    assert_eq!(order, [7, 2, 5, 3, 6, 4, 1]);
}

#[test]
fn a_heavier_project_has_as_many_more_turns() {
    let mut state = State::new(1_000_000);
    let jobs = |from: u128| (from..from + 8).map(|id| (id, 10)).collect::<Vec<_>>();
    enqueue(&mut state, 1, "a", &jobs(1));
    enqueue(&mut state, 2, "b", &jobs(101));
    let weight = |project: &job::Id| Gate::Open(if &**project == "a" { 3 } else { 1 });
    let turns =
        std::iter::from_fn(|| state.ready().next(0, all(), ByClass::default(), weight)).take(8);
    let of_b: Vec<usize> =
        (0..).zip(turns).filter(|(_, id)| id.as_u128() > 100).map(|(turn, _)| turn).collect();
    assert_eq!(of_b, [3, 7]);
}

#[test]
fn a_lower_class_keeps_its_share_of_the_turns() {
    let mut state = State::new(1_000_000);
    let high: Vec<(u128, u16)> = (1..=200).map(|id| (id, 0)).collect();
    let low: Vec<(u128, u16)> = (1_001..=1_200).map(|id| (id, 500)).collect();
    enqueue(&mut state, 1, "a", &high);
    enqueue(&mut state, 2, "a", &low);
    let first: Vec<u128> = (0..100)
        .filter_map(|_| state.ready().next(10, all(), ByClass::default(), |_| Gate::Open(1)))
        .map(|id| id.as_u128())
        .collect();
    assert_eq!(first.iter().filter(|id| **id > 1_000).count(), 10);
}
