//! The runs in flight in this processor, from delivery until their outcome is stored, and the runs
//! that it must stop.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use job::{JobId, Run};
use nats::consumer::Lease;
use tokio_util::sync::CancellationToken;

/// How long a hint to stop is remembered: work that was dispatched before it may arrive after it.
const REMEMBER_STOPS: Duration = Duration::from_secs(600);
/// How many hints are remembered at most.
const STOPS_MAX: usize = 200_000;

/// All runs in hand.
#[derive(Debug, Default)]
pub(crate) struct InFlightRuns {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: HashMap<(JobId, Run), RunInFlight>,
    /// Deliveries that came in and are not in hand yet.
    waiting: HashMap<u64, Lease>,
    next_waiting: u64,
    stops: HashMap<JobId, (Run, Instant)>,
}

#[derive(Debug)]
struct RunInFlight {
    lease: Lease,
    stop: CancellationToken,
    /// The same run, handed out once more by a broker that had forgotten it.
    again: Option<Lease>,
}

impl InFlightRuns {
    /// Adds a run. `None` if it is in flight already, or was stopped before it arrived.
    pub fn take(&self, job: JobId, run: Run, lease: Lease) -> Admission {
        let mut inner = self.lock();
        if inner.runs.contains_key(&(job, run)) {
            return Admission::Already;
        }
        if inner.stops.get(&job).is_some_and(|(last, _)| run <= *last) {
            return Admission::Stopped;
        }
        let stop = CancellationToken::new();
        inner.runs.insert((job, run), RunInFlight { lease, stop: stop.clone(), again: None });
        Admission::RunInFlight(stop)
    }

    /// Removes a run; returns the other deliveries to ack with it.
    pub fn release(&self, job: JobId, run: Run) -> Option<Lease> {
        self.lock().runs.remove(&(job, run))?.again
    }

    /// Takes a further delivery of a run that is in hand: its lease is extended from here on.
    /// Says whether the run is in hand.
    pub fn adopt(&self, job: JobId, run: Run, lease: Lease) -> bool {
        let mut inner = self.lock();
        let Some(in_hand) = inner.runs.get_mut(&(job, run)) else { return false };
        in_hand.again = Some(lease);
        true
    }

    /// Extends the lease of a delivery that is not in hand yet, until the returned guard goes.
    pub fn keep(self: &Arc<Self>, lease: Lease) -> Kept {
        let mut inner = self.lock();
        inner.next_waiting += 1;
        let place = inner.next_waiting;
        inner.waiting.insert(place, lease);
        Kept { in_flight: self.clone(), place }
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

    /// The leases of all that was delivered here and is not acked.
    pub fn leases(&self) -> Vec<Lease> {
        let inner = self.lock();
        let in_hand = inner.runs.values();
        let in_hand = in_hand.map(|run| run.again.as_ref().unwrap_or(&run.lease));
        in_hand.chain(inner.waiting.values()).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock, so the data is consistent in any case.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Keeps the lease of a delivery that waits.
#[derive(Debug)]
pub(crate) struct Kept {
    in_flight: Arc<InFlightRuns>,
    place: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.in_flight.lock().waiting.remove(&self.place);
    }
}

/// Whether a run came into hand.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It did; the token tells when it is to stop.
    RunInFlight(CancellationToken),
    /// It was in hand already.
    Already,
    /// It was to stop before it came.
    Stopped,
}
