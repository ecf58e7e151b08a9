//! Projects: what their settings may take, and when they are forgotten.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use job::{
    Config, JobId, Json, Limits, Lookups, Patch, State,
    command::{Cancel, Command, Enqueue, NewJob, Project, SetSchedule},
    reply::{Code, Reply},
    schedule::{IfLive, Schedule},
    time::Millis,
};

const HOUR_MS: Millis = 3_600_000;
const DAY_MS: Millis = 24 * HOUR_MS;

/// Decides a command and applies its events. A state that is restored from a snapshot decides the same.
fn decide(state: &mut State, config: &Config, now: Millis, command: &Command) -> Reply {
    let mut written = Vec::new();
    state.snapshot().write(&mut written).unwrap();
    let restored = State::new(2 * HOUR_MS).restore(&*written).unwrap();
    let decision = state.decide(config, &Lookups::default(), now, command).unwrap();
    let of_restored = restored.decide(config, &Lookups::default(), now, command).unwrap();
    assert_eq!(decision.reply, of_restored.reply);
    let sequence = state.position().sequence + 1;
    for (index, event) in (0..).zip(&decision.events) {
        state.apply(now, job::Position::new(sequence, index), event);
    }
    decision.reply
}

fn enqueue(project: &str, id: u128) -> Command {
    let jobs = vec![NewJob::new(JobId::from_u128(id), "b".into())];
    Command::Enqueue(Enqueue::new(project.into(), jobs))
}

fn set(project: &str, options: usize) -> Command {
    let options = Json::of(&serde_json::json!({ "text": "a".repeat(options) })).unwrap();
    let change = Patch { options: Some(Some(options)), ..Patch::default() };
    Command::Project(Project { project: project.into(), change })
}

fn schedule(project: &str, name: &str, data: usize) -> Command {
    let schedule = Schedule {
        cron: "0 0 * * *".into(),
        time_zone: "UTC".into(),
        batch_id: "b".into(),
        priority: 7,
        max_attempts: None,
        data: Json::of("a".repeat(data).as_str()).unwrap(),
        if_live: IfLive::Skip,
    };
    let (project, name) = (project.into(), name.into());
    Command::Schedule(SetSchedule { project, name, schedule: Some(schedule) })
}

fn is_refused(reply: &Reply, expected: &Code, text: &str) -> bool {
    matches!(reply, Reply::Refused { code, error, .. } if code == expected && error.contains(text))
}

#[test]
fn settings_and_schedules_of_all_projects_are_bounded() {
    let config = Config { settings_bytes_max: 30_000, ..Config::default() };
    let mut state = State::new(2 * HOUR_MS);
    let mut decide = |command| decide(&mut state, &config, 1, &command);
    assert!(matches!(decide(set("p", 12_000)), Reply::ProjectSet(_)));
    assert!(matches!(decide(schedule("q", "s", 6_000)), Reply::ScheduleSet(_)));
    let full = |reply: &Reply| is_refused(reply, &Code::SettingsFull, "JOBMESH_SETTINGS_MB");
    assert!(full(&decide(set("r", 3_000))));
    assert!(full(&decide(schedule("p", "s", 5_000))));
    assert!(full(&decide(set("p", 19_000))));
    // A project that holds something can be paused in any case, and an invented name takes no memory.
    let change = Patch { paused: Some(Some(true)), ..Patch::default() };
    let pause = |project: &str| {
        Command::Project(Project { project: project.into(), change: change.clone() })
    };
    assert!(matches!(decide(enqueue("s", 1)), Reply::Enqueued { .. }));
    for project in ["p", "q", "s"] {
        assert!(matches!(decide(pause(project)), Reply::ProjectSet(_)), "{project}");
    }
    assert!(full(&decide(pause("invented"))));
    // What makes room is never refused, and others have the room.
    assert!(matches!(decide(set("p", 1_000)), Reply::ProjectSet(_)));
    assert!(matches!(decide(set("r", 1_000)), Reply::ProjectSet(_)));
    assert!(full(&decide(set("r", 9_500))));
    let removed = SetSchedule { project: "q".into(), name: "s".into(), schedule: None };
    assert!(matches!(decide(Command::Schedule(removed)), Reply::ScheduleSet(None)));
    assert!(matches!(decide(set("r", 9_500)), Reply::ProjectSet(_)));
}

#[test]
fn project_has_no_more_schedules_than_its_limit() {
    let limits = Limits { max_schedules: 2, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let mut state = State::new(2 * HOUR_MS);
    let mut decide = |command| decide(&mut state, &config, 1, &command);
    for name in ["a", "b", "b"] {
        assert!(matches!(decide(schedule("p", name, 1)), Reply::ScheduleSet(_)), "{name}");
    }
    let refused = decide(schedule("p", "c", 1));
    assert!(is_refused(&refused, &Code::TooManySchedules, "maxSchedules is 2"), "{refused:?}");
    assert!(matches!(decide(schedule("q", "c", 1)), Reply::ScheduleSet(_)));
}

#[test]
fn project_without_settings_schedules_and_active_jobs_is_forgotten() {
    let config = Config::default();
    let mut state = State::new(2 * HOUR_MS);
    for (id, project) in [(1, "ended"), (2, "active"), (3, "set"), (4, "scheduled")] {
        decide(&mut state, &config, 1, &enqueue(project, id));
    }
    decide(&mut state, &config, 1, &set("set", 1));
    for options in [Some(Json::of(&1).unwrap()), None] {
        let change = Patch { options: Some(options), ..Patch::default() };
        let change = Project { project: "reset".into(), change };
        decide(&mut state, &config, 1, &Command::Project(change));
    }
    decide(&mut state, &config, 1, &schedule("scheduled", "s", 1));
    for project in ["ended", "set", "scheduled"] {
        let batches = Some(vec!["b".into()]);
        let cancel = Cancel { project: project.into(), batches, idempotency: None };
        decide(&mut state, &config, 2, &Command::Cancel(cancel));
    }
    let projects = |state: &State| {
        let mut ids: Vec<String> = state.projects().map(|project| project.id.to_string()).collect();
        ids.sort();
        ids.join(" ")
    };
    // One that never had a job is not listed, and forgotten when an hour begins.
    let remembers = |state: &State, name: &str| {
        let mut written = Vec::new();
        state.snapshot().write(&mut written).unwrap();
        String::from_utf8_lossy(&written).contains(name)
    };
    assert!(remembers(&state, "reset"));
    decide(&mut state, &config, HOUR_MS, &enqueue("later", 7));
    assert_eq!(projects(&state), "active ended later scheduled set");
    assert!(!remembers(&state, "reset") && remembers(&state, "scheduled"));
    decide(&mut state, &config, 31 * DAY_MS, &enqueue("later", 5));
    assert_eq!(projects(&state), "active ended later scheduled set");
    decide(&mut state, &config, 31 * DAY_MS + HOUR_MS, &enqueue("later", 6));
    assert_eq!(projects(&state), "active later scheduled set");
    assert_eq!(state.counts(None).total(), 7, "what is counted over all projects stays");
}
