//! The background tasks of this process: each has a name, and the results of its attempts are noted where it is made.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Mutex, MutexGuard, PoisonError},
};

use job::bounds::truncate;
use nats::{
    Broker,
    tasks::{ProcessTasks, TaskReport},
};

use crate::{Identity, now_ms};

/// How much of an error is kept, in bytes.
const ERROR_BYTES_MAX: usize = 500;

static TASKS: Mutex<BTreeMap<&'static str, TaskReport>> = Mutex::new(BTreeMap::new());

/// A background task of this process.
#[derive(Clone, Copy, Debug)]
pub struct BackgroundTask(&'static str);

impl BackgroundTask {
    /// The task of this name. It is not shown before it is [`listed`](list) or has a result.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Notes a success.
    pub fn succeeded(self) {
        self.change(|report| {
            report.succeeded += 1;
            report.last_at = Some(now_ms());
            report.error = None;
        });
    }

    /// Notes a failure. The caller logs it.
    pub fn failed(self, error: impl Display) {
        let error = truncate(&format!("{error:#}"), ERROR_BYTES_MAX);
        self.change(|report| {
            report.failed += 1;
            report.last_at = Some(now_ms());
            report.error = Some(error);
        });
    }

    /// Notes a result.
    pub fn note<T, E: Display>(self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.succeeded(),
            Err(error) => self.failed(error),
        }
    }

    fn change(self, change: impl FnOnce(&mut TaskReport)) {
        let name = || TaskReport { task: self.0.to_owned(), ..TaskReport::default() };
        change(lock().entry(self.0).or_insert_with(name));
    }
}

/// Shows tasks also before they have a result.
pub fn list(tasks: &[BackgroundTask]) {
    tasks.iter().for_each(|task| task.change(|_| {}));
}

/// Shows tasks no longer: this process does not run them now.
pub fn remove(tasks: &[BackgroundTask]) {
    lock().retain(|name, _| tasks.iter().all(|task| task.0 != *name));
}

/// Answers for the background tasks of this process.
///
/// # Errors
/// If requests cannot be received.
pub async fn report_tasks(
    broker: &Broker,
    service: Identity,
    instance: &str,
) -> anyhow::Result<()> {
    let instance = instance.to_owned();
    let report = move || ProcessTasks {
        service: service.name().to_owned(),
        instance: instance.clone(),
        tasks: lock().values().cloned().collect(),
    };
    Ok(broker.report_tasks(report).await?)
}

fn lock() -> MutexGuard<'static, BTreeMap<&'static str, TaskReport>> {
    TASKS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_shows_its_last_result_and_how_often_it_succeeded_and_failed() {
        let task = BackgroundTask::new("a test's task");
        let report = || lock()["a test's task"].clone();
        list(&[task]);
        remove(&[BackgroundTask::new("another")]);
        assert_eq!((report().last_at, report().error), (None, None));
        task.note(&Err::<(), _>("no space"));
        assert_eq!((report().failed, report().error.as_deref()), (1, Some("no space")));
        task.note(&Ok::<_, String>(()));
        assert_eq!((report().succeeded, report().failed, report().error), (1, 1, None));
        remove(&[task]);
        assert!(!lock().contains_key("a test's task"));
    }
}
