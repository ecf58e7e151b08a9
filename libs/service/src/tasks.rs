//! The background tasks of this process: each has a name, and the results of its attempts are noted where it is made.

use std::{
    collections::BTreeMap,
    fmt::Display,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use job::bounds::truncate;
use nats::{
    Broker,
    tasks::{ProcessTasks, TaskReport},
};

use tokio::time::timeout;

use crate::{Identity, now_ms};

/// How much of an error is kept, in bytes.
const ERROR_BYTES_MAX: usize = 500;

/// How long a wait must be to count as a success: longer than the broker takes to be missed.
const WORKS_AFTER: Duration = Duration::from_secs(15);

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

    /// Waits for the next piece of work. A wait without an error is a success, too: after a failure the next piece may be
    /// days away.
    pub async fn wait_for<T>(self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            match timeout(WORKS_AFTER, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.succeeded(),
            }
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
    #[tokio::test(start_paused = true)]
    async fn task_that_waits_for_work_shows_no_failure_of_before() {
        let task = BackgroundTask::new("a task that waits");
        let report = || lock()["a task that waits"].clone();
        task.failed("no connection");
        task.wait_for(tokio::time::sleep(WORKS_AFTER / 2)).await;
        assert!(report().error.is_some(), "it may fail again");
        task.wait_for(tokio::time::sleep(WORKS_AFTER * 2 - Duration::from_secs(1))).await;
        assert_eq!((report().error, report().succeeded), (None, 1));
    }
}
