//! Counts once a second for any number of viewers: one query serves all that look at the same project.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use job::Id;
use tokio::sync::watch;

/// How often the counts are read.
const PERIOD: Duration = Duration::from_secs(1);

/// The counts as they were last read; `None` before the first time.
pub(crate) type LiveCounts = watch::Receiver<Option<Bytes>>;

/// The counts that are watched: of a project, or of all. Cheap to clone; all clones share it.
#[derive(Clone, Default)]
pub(crate) struct LiveStats(Arc<Mutex<Watched>>);

/// The senders, by project; `None` is the sender of the counts of all projects.
type Watched = HashMap<Option<Id>, watch::Sender<Option<Bytes>>>;

impl LiveStats {
    /// Receives the counts of a project, or of all, each time they have changed. `read` reads them while there are
    /// receivers.
    pub fn subscribe<F, R>(&self, project: Option<Id>, read: F) -> LiveCounts
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Bytes> + Send,
    {
        let mut watched = self.watched();
        if let Some(sender) = watched.get(&project) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        watched.insert(project.clone(), sender.clone());
        let live = self.clone();
        tokio::spawn(async move {
            while live.is_watched(&project, &sender) {
                let counts = read().await;
                sender.send_if_modified(|last| {
                    let has_changed = last.as_ref() != Some(&counts);
                    *last = Some(counts);
                    has_changed
                });
                tokio::time::sleep(PERIOD).await;
            }
        });
        receiver
    }

    /// False without receivers: the next subscriber starts a new task.
    fn is_watched(&self, project: &Option<Id>, sender: &watch::Sender<Option<Bytes>>) -> bool {
        let mut watched = self.watched();
        let is_watched = sender.receiver_count() > 0;
        if !is_watched {
            watched.remove(project);
        }
        is_watched
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
