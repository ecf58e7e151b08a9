//! Fuzz targets for the parsers of what comes from outside. JOBMESH_FUZZ_TARGET names the target: one program for all
//! of them takes one link.
#![no_main]

use std::sync::OnceLock;

use job::{
    Json, Patch, Settings,
    schedule::{IfLive, Schedule},
    template::Template,
};
use libfuzzer_sys::fuzz_target;
use nats::{
    SubjectToken,
    access::{Access, Login, Tls},
    api_keys::KeyText,
    heartbeat::Heartbeat,
    names::Verb,
    wire::{self, Work},
};

/// A target: it panics if a parser is wrong.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 15] = [
    ("body", edge::fuzzing::body),
    ("query", edge::fuzzing::query),
    ("ticket", edge::fuzzing::ticket),
    ("forwarded", edge::fuzzing::forwarded),
    ("answer", processor::fuzzing::answer),
    ("statement", olap::fuzzing::statement),
    ("commands", commands),
    ("events", events),
    ("work", work),
    ("settings", settings),
    ("template", template),
    ("schedule", schedule),
    ("api-key", api_key),
    ("subject", subject),
    ("nats-url", nats_url),
];

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("JOBMESH_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|(target, _)| *target == name);
        found.unwrap_or_else(|| panic!("no target {name:?}")).1
    });
    target(data);
});

/// The text of an input; targets for text skip others.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

fn commands(data: &[u8]) {
    let Some((verb, payload)) = data.split_first() else { return };
    let verb = Verb::ALL[usize::from(*verb) % Verb::ALL.len()];
    let _ = wire::commands(1, &verb.subject(), None, payload);
}

/// A batch is the same after it was written and read again.
fn events(data: &[u8]) {
    let Ok(batch) = wire::batch(1, data) else { return };
    let again = serde_json::to_vec(&batch).expect("events are JSON");
    let again = wire::batch(1, &again).expect("a batch can be read again");
    assert_eq!(batch, again);
}

fn work(data: &[u8]) {
    let _ = serde_json::from_slice::<Work>(data);
    let _ = serde_json::from_slice::<Heartbeat>(data);
}

/// A change that is accepted gives settings that are.
fn settings(data: &[u8]) {
    let Ok(patch) = serde_json::from_slice::<Patch>(data) else { return };
    if patch.check().is_ok() {
        let settings = patch.apply(&Settings::default());
        let json = serde_json::to_string(&settings).expect("settings are JSON");
        let read: Settings = serde_json::from_str(&json).expect("settings can be read again");
        assert_eq!(settings, read);
    }
}

/// A template before the first NUL, data behind it.
fn template(data: &[u8]) {
    const BYTES_MAX: usize = 10_000;
    let Some((template, data)) = text(data).and_then(|text| text.split_once('\0')) else { return };
    let Ok(template) = Template::parse("template", template) else { return };
    let Ok(data) = serde_json::from_str::<Json>(data) else { return };
    if let Ok(filled) = template.fill(&data, BYTES_MAX) {
        assert!(filled.len() <= BYTES_MAX);
    }
}

fn schedule(data: &[u8]) {
    let Some((zone, cron)) = text(data).and_then(|text| text.split_once('\0')) else { return };
    let schedule = Schedule {
        cron: cron.into(),
        time_zone: zone.into(),
        batch_id: "b".into(),
        priority: 10,
        max_attempts: None,
        data: Json::default(),
        if_live: IfLive::default(),
    };
    let at = 1_700_000_000_000;
    if let Ok(next) = schedule.next_after(at) {
        assert!(next > at);
    }
}

fn api_key(data: &[u8]) {
    if let Some(key) = text(data).and_then(KeyText::parse) {
        let _ = key.secret_hash();
    }
}

/// Every id is one token of a subject, and can be read from it.
fn subject(data: &[u8]) {
    let Some(id) = text(data) else { return };
    let token = SubjectToken::new(id).to_string();
    assert!(!token.is_empty() && !token.contains(['.', '*', '>', ' ', '\r', '\n', '\t', '\0']));
    assert_eq!(SubjectToken::decode(&token).as_deref(), Some(id));
}

fn nats_url(data: &[u8]) {
    let Some(urls) = text(data) else { return };
    if let Ok(access) = Access::new(urls, Login::None, Tls::default()) {
        let _ = access.to_string();
    }
}
