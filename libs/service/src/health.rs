//! Whether a service is ready: the parts that must work, each reported by the code that knows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nats::Broker;
use serde::Serialize;

/// The readiness of a service. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Status>>>,
    broker: Arc<Mutex<Option<Broker>>>,
}

/// One part of a service that must work before it is ready.
#[derive(Clone, Debug)]
pub struct Part {
    health: Health,
    name: &'static str,
}

#[derive(Debug)]
struct Status {
    /// Why it does not work.
    problem: Option<String>,
    /// For how long a report that it works is valid, if not until the next one.
    valid_for: Option<Duration>,
    reported_at: Instant,
}

/// The answer to a readiness probe.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether all parts work.
    pub ready: bool,
    /// `ok`, or what is wrong, by part.
    pub checks: BTreeMap<&'static str, String>,
}

impl Health {
    /// A part that does not work until it is reported to. With `valid_for`, a report is valid for that
    /// time only.
    pub fn part(&self, name: &'static str, valid_for: Option<Duration>) -> Part {
        let problem = Some("not started yet".to_owned());
        let status = Status { problem, valid_for, reported_at: Instant::now() };
        lock(&self.parts).insert(name, status);
        Part { health: self.clone(), name }
    }

    /// From here on the connection to NATS is a part.
    pub fn connected(&self, broker: &Broker) {
        *lock(&self.broker) = Some(broker.clone());
    }

    /// The connections to NATS that were made, and whether one stands.
    pub(crate) fn connection(&self) -> (u64, bool) {
        let broker = lock(&self.broker);
        let count = |broker: &Broker| (*broker.connects().borrow(), broker.is_connected());
        broker.as_ref().map_or((0, false), count)
    }

    /// Whether all parts work now.
    pub fn readiness(&self) -> Readiness {
        let (_, is_connected) = self.connection();
        let nats = if is_connected { "ok" } else { "not connected" };
        let mut checks = BTreeMap::from([("nats", nats.to_owned())]);
        for (name, status) in &*lock(&self.parts) {
            checks.insert(name, status.now());
        }
        Readiness { ready: checks.values().all(|check| check == "ok"), checks }
    }
}

impl Status {
    fn now(&self) -> String {
        let age = self.reported_at.elapsed();
        match &self.problem {
            Some(problem) => problem.clone(),
            None if self.valid_for.is_some_and(|valid_for| age > valid_for) => {
                format!("not confirmed for {} s", age.as_secs())
            }
            None => "ok".to_owned(),
        }
    }
}

impl Part {
    /// It works.
    pub fn works(&self) {
        self.report(None);
    }

    /// It does not work, and why.
    pub fn fails(&self, problem: impl Into<String>) {
        self.report(Some(problem.into()));
    }

    fn report(&self, problem: Option<String>) {
        if let Some(status) = lock(&self.health.parts).get_mut(self.name) {
            status.problem = problem;
            status.reported_at = Instant::now();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_works_from_a_report_until_the_next_or_as_long_as_that_is_valid() {
        let health = Health::default();
        let lasting = health.part("lasting", None);
        let brief = health.part("brief", Some(Duration::ZERO));
        let check = |name| health.readiness().checks[name].clone();
        assert_eq!(check("lasting"), "not started yet");
        lasting.works();
        brief.works();
        assert_eq!(check("lasting"), "ok");
        assert_eq!(check("brief"), "not confirmed for 0 s");
        lasting.fails("no table");
        assert_eq!(check("lasting"), "no table");
        assert_eq!(check("nats"), "not connected");
        assert!(!health.readiness().ready);
    }
}
