//! How many requests of one API key, and of one project, wait at the same time: event streams, and questions that wait for
//! the end of a job. Each costs memory for as long as it is open.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use job::Id;

use super::Access;
use crate::error::Error;

/// The numbers of waiting requests, by key and by project. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct WaitingRequests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    per_key_max: usize,
    per_project_max: usize,
    waiting: Mutex<HashMap<Of, usize>>,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Of {
    Key(String),
    Project(String),
}

/// A waiting request, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct WaitingPermit {
    requests: WaitingRequests,
    of: Of,
}

impl WaitingRequests {
    pub fn new(per_key_max: usize, per_project_max: usize) -> Self {
        Self(Arc::new(Inner { per_key_max, per_project_max, waiting: Mutex::default() }))
    }

    /// Counts a request that waits, for its key and for the project that it names.
    ///
    /// # Errors
    /// If one of them has as many as it may have.
    pub fn enter(
        &self,
        access: &Access,
        project: Option<&Id>,
    ) -> Result<[Option<WaitingPermit>; 2], Error> {
        let key = access.key().map(|key| self.count(Of::Key(key.to_owned()))).transpose()?;
        Ok([key, project.map(|project| self.of_project(project)).transpose()?])
    }

    /// Counts a request that waits for what is of one project.
    ///
    /// # Errors
    /// If the project has as many as it may have.
    pub fn of_project(&self, project: &str) -> Result<WaitingPermit, Error> {
        self.count(Of::Project(project.to_owned()))
    }

    fn count(&self, of: Of) -> Result<WaitingPermit, Error> {
        let mut waiting = self.lock();
        let count = waiting.get(&of).copied().unwrap_or(0);
        match &of {
            Of::Key(_) if count >= self.0.per_key_max => {
                return Err(Error::too_many_waiting("this API key", self.0.per_key_max));
            }
            Of::Project(_) if count >= self.0.per_project_max => {
                return Err(Error::too_many_waiting("this project", self.0.per_project_max));
            }
            _ => {}
        }
        waiting.insert(of.clone(), count + 1);
        Ok(WaitingPermit { requests: self.clone(), of })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Of, usize>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WaitingPermit {
    fn drop(&mut self) {
        let mut waiting = self.requests.lock();
        if let Some(count) = waiting.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.of);
            }
        }
    }
}
