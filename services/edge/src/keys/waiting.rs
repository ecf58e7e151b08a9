//! How many requests of one API key wait at the same time: event streams, and questions that wait for the
//! end of a job. Each costs memory for as long as it is open.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Access;
use crate::error::Error;

/// The numbers of waiting requests, by key. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct WaitingRequests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    per_key_max: usize,
    waiting: Mutex<HashMap<String, usize>>,
}

/// A waiting request, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct WaitingPermit {
    requests: WaitingRequests,
    key: String,
}

impl WaitingRequests {
    pub fn new(per_key_max: usize) -> Self {
        Self(Arc::new(Inner { per_key_max, waiting: Mutex::default() }))
    }

    /// Counts a request that waits; `None` without a key, when only the limits of connections hold.
    ///
    /// # Errors
    /// If its key has as many as it may have.
    pub fn enter(&self, access: &Access) -> Result<Option<WaitingPermit>, Error> {
        let Some(key) = access.key() else { return Ok(None) };
        let mut waiting = self.lock();
        let of_key = waiting.entry(key.to_owned()).or_default();
        if *of_key >= self.0.per_key_max {
            return Err(Error::too_many_waiting(self.0.per_key_max));
        }
        *of_key += 1;
        Ok(Some(WaitingPermit { requests: self.clone(), key: key.to_owned() }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WaitingPermit {
    fn drop(&mut self) {
        let mut waiting = self.requests.lock();
        if let Some(of_key) = waiting.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                waiting.remove(&self.key);
            }
        }
    }
}
