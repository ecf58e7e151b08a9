//! What one request may see and do.

use std::{sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use job::Id;
use nats::api_keys::{KeyRecord, Scope};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// The rights of a request.
#[derive(Clone)]
pub(crate) struct Access {
    /// Its key; `None` if the mesh has no keys, and everything is allowed.
    key: Option<(Arc<KeyRecord>, CancellationToken)>,
}

impl Access {
    /// Everything.
    pub fn open() -> Self {
        Self { key: None }
    }

    /// What a key allows, until `ended` is cancelled.
    pub fn of_key(record: Arc<KeyRecord>, ended: CancellationToken) -> Self {
        Self { key: Some((record, ended)) }
    }

    fn record(&self) -> Option<&KeyRecord> {
        self.key.as_ref().map(|(record, _)| &**record)
    }

    /// Checks that the key has a scope.
    ///
    /// # Errors
    /// If its scope is smaller.
    pub fn allows(&self, needed: Scope) -> Result<(), Error> {
        match self.record() {
            Some(record) if record.scope < needed => Err(Error::scope(record.scope, needed)),
            _ => Ok(()),
        }
    }

    /// True if the request may know that a project exists.
    pub fn sees(&self, project: &str) -> bool {
        self.record().is_none_or(|record| record.has_project(project))
    }

    /// Checks that the request may use a project.
    ///
    /// # Errors
    /// If not: the same as for a project that no key has.
    pub fn project(&self, project: &str) -> Result<(), Error> {
        if self.sees(project) { Ok(()) } else { Err(Error::project_not_found(project)) }
    }

    /// Checks that the request may use the project that it names, or all projects if it names none.
    ///
    /// # Errors
    /// If not.
    pub fn project_or_all(&self, project: Option<&Id>) -> Result<(), Error> {
        match project {
            Some(project) => self.project(project),
            None if self.record().is_none_or(|record| record.projects.is_none()) => Ok(()),
            None => Err(Error::missing("projectId (the API key is for some projects only)")),
        }
    }

    /// True if data, results and progress are hidden.
    pub fn is_metadata_only(&self) -> bool {
        self.record().is_some_and(|record| record.metadata_only)
    }

    /// Waits until the key is revoked, changed or expired.
    pub async fn ended(&self) {
        let Some((record, ended)) = &self.key else { return std::future::pending().await };
        let Some(at) = record.expires_at else { return ended.cancelled().await };
        let left = u64::try_from(at - service::now_ms()).unwrap_or(0);
        tokio::select! {
            () = ended.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(left)) => {}
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Access {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let access = parts.extensions.get().cloned();
        // Every route is behind the guard that sets it.
        access.ok_or_else(|| Error::internal("a request has no access"))
    }
}
