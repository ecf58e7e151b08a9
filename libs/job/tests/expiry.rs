//! Jobs that wait for too long expire, exactly those, also over a restart.

#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

use job::{
    Backoff, Config, JobId, Lookups, Patch, Scheduler, State, Status, Usage,
    command::{Command, End, Enqueue, NewJob, Outcome, Project, Retry, Started, Update},
    reply::{Code, Reply},
    time::Millis,
    transaction::Transaction,
};

const SECOND: Millis = 1_000;

struct World {
    state: State,
    scheduler: Scheduler,
    now: Millis,
    sequence: u64,
}

impl World {
    fn new() -> Self {
        let state = State::new(1_000_000);
        Self { state, scheduler: Scheduler::default(), now: SECOND, sequence: 0 }
    }

    fn process(&mut self, command: &Command) -> Reply {
        self.sequence += 1;
        let decision =
            self.state.decide(&Config::default(), &Lookups::default(), self.now, command);
        let reply = decision.expect("it needs no lookups").reply;
        self.commit(|transaction, sequence| {
            let processed = transaction.process(0, command, None, &Lookups::default());
            processed.expect("it needs no lookups");
            transaction.end_message(sequence, None);
        });
        reply
    }

    fn commit(&mut self, act: impl FnOnce(&mut Transaction<'_>, u64)) {
        let config = Config::default();
        let mut transaction =
            Transaction::begin(&mut self.state, &self.scheduler, &config, self.now);
        act(&mut transaction, self.sequence);
        let commit = transaction.commit();
        commit.finish(&mut self.state, &mut self.scheduler);
    }

    /// Enqueues job `id` of a batch of its own.
    fn enqueue(&mut self, id: u128, run_at: Option<Millis>, expires_in: Option<u32>) {
        let job = NewJob::new(JobId::from_u128(id), format!("b{id}").into());
        let retry = Some(Backoff { base_ms: 60 * SECOND, jitter: 0.0, ..Backoff::default() });
        let new = Enqueue { run_at, expires_in, retry, ..Enqueue::new("p".into(), vec![job]) };
        assert_eq!(self.process(&Command::Enqueue(new)), Reply::Enqueued { canceled: 0 });
    }

    fn start(&mut self, id: u128) {
        let (job, at) = (JobId::from_u128(id), self.now);
        self.process(&Command::Started(Started {
            job,
            run: 1,
            worker: "w".into(),
            at,
            token: None,
        }));
    }

    fn fail(&mut self, id: u128) {
        self.end(id, End::Retry { error: "busy".into(), after_ms: None });
    }

    fn end(&mut self, id: u128, end: End) {
        let job = self.state.job(JobId::from_u128(id)).expect("it is there");
        self.process(&Command::Outcome(Outcome {
            job: job.id,
            run: job.run,
            worker: "w".into(),
            labels: job::JobLabels::job(&job),
            started_at: Some(self.now),
            finished_at: self.now,
            usage: Usage::default(),
            end,
            token: None,
        }));
    }

    fn update(&mut self, id: u128, run_at: Option<Millis>, expires_in: Option<u32>) -> Reply {
        let (project, job) = ("p".into(), JobId::from_u128(id));
        self.process(&Command::Update(Update { project, job, priority: None, run_at, expires_in }))
    }

    /// Moves the clock to `now` and cancels the jobs that have expired.
    fn advance_to(&mut self, now: Millis) {
        self.now = now;
        let mut expired = 1;
        while expired > 0 {
            self.commit(|transaction, _| expired = transaction.expire_due(now));
        }
    }

    fn restart(&mut self) {
        let mut snapshot = Vec::new();
        self.state.snapshot().write(&mut snapshot).expect("memory takes it");
        self.state = State::new(1_000_000).restore(&*snapshot).expect("it is a snapshot");
    }

    fn status(&self, id: u128) -> Status {
        self.state.job(JobId::from_u128(id)).expect("it is there").status
    }

    fn expires_at(&self, id: u128) -> Option<Millis> {
        self.state.job(JobId::from_u128(id)).expect("it is there").expires_at
    }
}

#[test]
fn only_queued_jobs_expire_and_each_at_its_time() {
    let mut world = World::new();
    world.enqueue(1, None, Some(10));
    world.enqueue(2, Some(31 * SECOND), Some(10));
    world.enqueue(3, None, None);
    world.enqueue(4, None, Some(10));
    world.enqueue(5, None, Some(10));
    world.start(4);
    world.start(5);
    world.fail(5);
    assert_eq!(world.state.next_expiry(), Some(11 * SECOND));
    world.restart();
    world.advance_to(11 * SECOND - 1);
    assert_eq!(world.status(1), Status::Queued);
    world.advance_to(11 * SECOND);
    let job = world.state.job(JobId::from_u128(1)).expect("it is there");
    let error = job.history().error.as_deref().expect("why");
    assert_eq!(error, "expired: run 1 had not started by 1970-01-01T00:00:11.000Z");
    let statuses = [1, 2, 3, 4, 5].map(|id| world.status(id));
    // The last one has started, and waits for its second attempt.
    let [queued, canceled] = [Status::Queued, Status::Canceled];
    assert_eq!(statuses, [canceled, queued, queued, Status::Processing, queued]);
    // A run that started in time may fail, or lose its processor, after that time.
    world.fail(4);
    world.advance_to(41 * SECOND);
    let statuses = [2, 3, 4, 5].map(|id| world.status(id));
    assert_eq!(statuses, [canceled, queued, queued, queued]);
    assert_eq!(world.state.next_expiry(), None);
}

#[test]
fn a_job_whose_processor_is_lost_or_hands_it_back_goes_on_if_it_had_started() {
    let mut world = World::new();
    for id in 1..=3 {
        world.enqueue(id, None, Some(10));
    }
    world.start(1);
    world.start(2);
    world.commit(|transaction, _| {
        // The third was handed out, and never started.
        for id in [1, 3] {
            assert!(transaction.requeue_lost(JobId::from_u128(id), 1));
        }
    });
    world.end(2, End::Released);
    world.restart();
    world.advance_to(11 * SECOND);
    let statuses = [1, 2, 3].map(|id| world.status(id));
    assert_eq!(statuses, [Status::Queued, Status::Queued, Status::Canceled]);
}

#[test]
fn the_time_follows_the_request_then_the_project_and_a_retry_by_hand_has_none() {
    let mut world = World::new();
    let change = Patch { expires_in: Some(Some(5)), ..Patch::default() };
    world.process(&Command::Project(Project { project: "p".into(), change }));
    world.enqueue(1, None, None);
    world.enqueue(2, None, Some(60));
    assert_eq!([1, 2].map(|id| world.expires_at(id)), [Some(6 * SECOND), Some(61 * SECOND)]);
    world.advance_to(6 * SECOND);
    assert_eq!([1, 2].map(|id| world.status(id)), [Status::Canceled, Status::Queued]);
    world.process(&Command::Retry(Retry {
        project: "p".into(),
        job: Some(JobId::from_u128(1)),
        filter: job::JobFilter::default(),
        deliveries: false,
        idempotency: None,
    }));
    world.advance_to(60 * SECOND);
    assert_eq!((world.status(1), world.expires_at(1)), (Status::Queued, None));
}

#[test]
fn an_update_moves_removes_and_never_contradicts_the_time() {
    let mut world = World::new();
    world.enqueue(1, None, Some(10));
    let Reply::Refused { code, error, .. } = world.update(1, Some(11 * SECOND), None) else {
        panic!("it would expire first")
    };
    assert_eq!(code, Code::ExpiresBeforeRunAt);
    assert!(error.contains("1970-01-01T00:00:11.000Z") && error.contains("expiresIn"), "{error}");
    assert_eq!(world.update(1, Some(11 * SECOND), Some(10)), Reply::Updated);
    assert_eq!(world.expires_at(1), Some(21 * SECOND));
    assert_eq!(world.update(1, None, Some(0)), Reply::Updated);
    assert_eq!((world.expires_at(1), world.state.next_expiry()), (None, None));
    world.advance_to(100 * SECOND);
    assert_eq!(world.status(1), Status::Queued);
    assert_eq!(world.update(1, None, Some(3)), Reply::Updated);
    world.advance_to(103 * SECOND);
    assert_eq!(world.status(1), Status::Canceled);
}

#[test]
fn a_hundred_thousand_jobs_expire_in_parts() {
    let mut world = World::new();
    let jobs = (0..100_000_u32).map(|n| {
        let id = JobId::from_u128(u128::from(n) + 1);
        NewJob::new(id, format!("b{n}").into())
    });
    let jobs: Vec<NewJob> = jobs.collect();
    for part in jobs.chunks(10_000) {
        let new = Enqueue { expires_in: Some(1), ..Enqueue::new("p".into(), part.to_vec()) };
        world.process(&Command::Enqueue(new));
    }
    let mut most = 0;
    world.now = 2 * SECOND;
    world.commit(|transaction, _| most = transaction.expire_due(2 * SECOND));
    assert!((1..=2_000).contains(&most), "{most} in one transaction");
    world.advance_to(2 * SECOND);
    let counts = world.state.counts(Some("p"));
    assert_eq!((counts.queued.iter().sum::<u64>(), counts.canceled), (0, 100_000));
}
