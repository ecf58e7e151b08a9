//! The runs in this processor's hands, from delivery until their end is recorded, and the runs
//! that it was told to stop.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use job::{JobId, Run};
use mesh::pull::Lease;
use tokio_util::sync::CancellationToken;

/// How long a hint to stop is remembered: work that was dispatched before it may arrive after it.
const REMEMBER_STOPS: Duration = Duration::from_secs(600);
/// How many hints are remembered at most.
const STOPS_MAX: usize = 200_000;

/// All runs in hand.
#[derive(Debug, Default)]
pub(crate) struct Hands {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: HashMap<(JobId, Run), InHand>,
    stops: HashMap<JobId, (Run, Instant)>,
}

#[derive(Debug)]
struct InHand {
    lease: Lease,
    stop: CancellationToken,
}

impl Hands {
    /// Takes a run in hand. `None` where it is in hand already, or was to stop before it came.
    pub fn take(&self, job: JobId, run: Run, lease: Lease) -> Taken {
        let mut inner = self.lock();
        if inner.runs.contains_key(&(job, run)) {
            return Taken::Already;
        }
        if inner.stops.get(&job).is_some_and(|(last, _)| run <= *last) {
            return Taken::Stopped;
        }
        let stop = CancellationToken::new();
        inner.runs.insert((job, run), InHand { lease, stop: stop.clone() });
        Taken::InHand(stop)
    }

    /// Lets a run go.
    pub fn release(&self, job: JobId, run: Run) {
        self.lock().runs.remove(&(job, run));
    }

    /// Stops a job's runs up to and with `run`, now and in the time to come.
    pub fn stop(&self, job: JobId, run: Run) {
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.stops.len() >= STOPS_MAX {
            inner.stops.retain(|_, (_, at)| now.duration_since(*at) < REMEMBER_STOPS);
        }
        let last = inner.stops.get(&job).map_or(run, |(last, _)| run.max(*last));
        inner.stops.insert(job, (last, now));
        for ((id, held), in_hand) in &inner.runs {
            if *id == job && *held <= run {
                in_hand.stop.cancel();
            }
        }
    }

    /// The runs in hand.
    pub fn runs(&self) -> Vec<(JobId, Run)> {
        self.lock().runs.keys().copied().collect()
    }

    /// The leases of the runs in hand.
    pub fn leases(&self) -> Vec<Lease> {
        self.lock().runs.values().map(|run| run.lease.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock; what is behind it is whole in any case.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether a run came into hand.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It did; the token tells when it is to stop.
    InHand(CancellationToken),
    /// It was in hand already.
    Already,
    /// It was to stop before it came.
    Stopped,
}
