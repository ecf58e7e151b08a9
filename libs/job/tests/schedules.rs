//! Schedules: each time fires once, missed ones as one, also over a restart.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use job::{
    Config, Id, JobId, Json, Lookups, State, Status,
    command::{Cancel, Command, SetSchedule},
    event::{Batch, Event},
    reply::{Code, Reply},
    schedule::{IfLive, Schedule},
    time::{Millis, parse_rfc3339},
};

struct World {
    state: State,
    history: Vec<Batch>,
    ids: u128,
}

fn at(text: &str) -> Millis {
    parse_rfc3339(text).unwrap()
}

fn hourly(if_live: IfLive) -> Schedule {
    Schedule {
        cron: "0 * * * *".into(),
        time_zone: "UTC".into(),
        batch_id: "b".into(),
        priority: 7,
        max_attempts: Some(2),
        data: Json::of("x").unwrap(),
        if_live,
    }
}

impl World {
    fn new() -> Self {
        Self { state: State::new(1_000_000), history: Vec::new(), ids: 0 }
    }

    fn append(&mut self, now: Millis, events: Vec<Event>) {
        let sequence = self.history.len() as u64 + 1;
        let batch = Batch { at: now, commands: Vec::new(), events };
        self.state.apply_batch(sequence, sequence, &batch);
        self.history.push(batch);
    }

    fn decide(&mut self, now: Millis, command: Command) -> Reply {
        let decision = self.state.decide(&Config::default(), &Lookups::default(), now, &command);
        let decision = decision.unwrap();
        self.append(now, decision.events);
        while let Ok(Some(slice)) = self.state.decide_slice(&Lookups::default(), now) {
            self.append(now, slice.events);
        }
        decision.reply
    }

    fn set(&mut self, now: Millis, schedule: Option<Schedule>) -> Reply {
        let (project, name) = ("p".into(), "nightly".into());
        self.decide(now, Command::Schedule(SetSchedule { project, name, schedule }))
    }

    /// Fires what is due; returns for which times, and the jobs.
    fn fire(&mut self, now: Millis) -> Vec<(Millis, Option<JobId>)> {
        let mut fired = Vec::new();
        while let Some((project, name)) = self.state.due_schedule(now) {
            self.ids += 1;
            let id = JobId::from_u128(self.ids);
            let events = self.state.decide_fire(&Config::default(), now, &project, &name, id);
            for event in &events {
                if let Event::ScheduleFired { at, job, .. } = event {
                    fired.push((*at, *job));
                }
            }
            self.append(now, events);
        }
        fired
    }

    fn restart(&mut self) {
        let mut snapshot = Vec::new();
        self.state.snapshot().write(&mut snapshot).unwrap();
        self.state = State::new(1_000_000).restore(&*snapshot).unwrap();
    }
}

#[test]
fn each_time_fires_once_and_missed_times_fire_as_one() {
    let mut world = World::new();
    let ten = at("2026-11-24T10:00:00Z");
    let set = world.set(ten - 60_000, Some(hourly(IfLive::Replace)));
    assert!(matches!(set, Reply::ScheduleSet(Some(timed)) if timed.next_at == Some(ten)));
    assert!(world.fire(ten - 1).is_empty());
    world.restart();
    let first = world.fire(ten);
    assert_eq!(first, [(ten, Some(JobId::from_u128(1)))]);
    assert!(world.fire(ten + 1).is_empty());
    world.restart();
    assert!(world.fire(ten + 1).is_empty());
    let job = world.state.job(JobId::from_u128(1)).unwrap();
    assert_eq!((job.status, job.priority, job.max_attempts), (Status::Queued, 7, 2));
    assert_eq!((&*job.batch, job.data.get()), ("b", "\"x\""));
    // Three times were missed: one job, for the last of them.
    let late = at("2026-11-24T13:20:00Z");
    let missed = world.fire(late);
    assert_eq!(missed, [(at("2026-11-24T13:00:00Z"), Some(JobId::from_u128(2)))]);
    assert_eq!(world.state.next_fire(), Some(at("2026-11-24T14:00:00Z")));
    // The newer job took the older one's place.
    let first = world.state.job(JobId::from_u128(1)).unwrap();
    assert_eq!(
        (first.status, first.history().superseded_by),
        (Status::Canceled, Some(JobId::from_u128(2)))
    );
}

#[test]
fn a_time_is_left_out_while_the_last_job_is_live() {
    let mut world = World::new();
    let ten = at("2026-11-24T10:00:00Z");
    world.set(ten - 1, Some(hourly(IfLive::Skip)));
    assert_eq!(world.fire(ten), [(ten, Some(JobId::from_u128(1)))]);
    let eleven = ten + 3_600_000;
    assert_eq!(world.fire(eleven), [(eleven, None)]);
    let (_, timed) = world.state.schedules("p").next().unwrap();
    assert_eq!((timed.last_at, timed.last_job_id), (Some(eleven), Some(JobId::from_u128(1))));
    let cancel = Cancel { project: "p".into(), batches: None, idempotency: None };
    world.decide(eleven, Command::Cancel(cancel));
    let twelve = eleven + 3_600_000;
    assert_eq!(world.fire(twelve), [(twelve, Some(JobId::from_u128(3)))]);
}

#[test]
fn a_schedule_is_replaced_removed_and_refused_by_name() {
    let mut world = World::new();
    let ten = at("2026-11-24T10:00:00Z");
    world.set(ten - 1, Some(hourly(IfLive::Skip)));
    let daily = Schedule { cron: "30 12 * * *".into(), ..hourly(IfLive::Skip) };
    world.set(ten - 1, Some(daily));
    assert!(world.fire(ten).is_empty(), "the previous schedule was replaced");
    assert_eq!(world.state.next_fire(), Some(at("2026-11-24T12:30:00Z")));
    assert_eq!(world.set(ten, None), Reply::ScheduleSet(None));
    assert_eq!(world.state.next_fire(), None);
    let again = world.set(ten, None);
    assert!(matches!(again, Reply::Refused { code: Code::ScheduleNotFound, .. }), "{again:?}");
    let never = Schedule { cron: "0 0 31 2 *".into(), ..hourly(IfLive::Skip) };
    let refused = world.set(ten, Some(never));
    assert!(matches!(refused, Reply::Refused { code: Code::ScheduleMalformed, .. }));
    let nobody: (Id, Id) = ("q".into(), "n".into());
    let id = JobId::from_u128(9);
    let none = world.state.decide_fire(&Config::default(), ten, &nobody.0, &nobody.1, id);
    assert!(none.is_empty());
}
