//! What one request may see and do.

use std::{sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use job::{Id, time::Millis};
use nats::api_keys::{KeyRecord, Scope};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ticket;
use crate::error::Error;

/// The current record of a key; `None` once it is revoked.
pub(super) type Current = watch::Receiver<Option<Arc<KeyRecord>>>;

/// The rights of a request.
#[derive(Clone)]
pub(crate) struct Access(Rights);

#[derive(Clone)]
enum Rights {
    /// Everything, until keys are needed.
    Open(CancellationToken),
    /// What a key allows.
    Key {
        record: Arc<KeyRecord>,
        /// The hash of the secret that the request has.
        secret: Arc<str>,
        current: Current,
    },
}

impl Access {
    /// Everything, until `closed` is cancelled.
    pub fn open(closed: CancellationToken) -> Self {
        Self(Rights::Open(closed))
    }

    /// What a key allows whose secret has this hash.
    pub(super) fn of_key(record: Arc<KeyRecord>, secret: Arc<str>, current: Current) -> Self {
        Self(Rights::Key { record, secret, current })
    }

    /// The key, if the request has one.
    pub fn key_record(&self) -> Option<&KeyRecord> {
        match &self.0 {
            Rights::Open(_) => None,
            Rights::Key { record, .. } => Some(record),
        }
    }

    /// The id of the key, if the request has one.
    pub fn key(&self) -> Option<&str> {
        self.key_record().map(|record| record.id.as_str())
    }

    /// A new ticket of the key, and when it expires; `None` if the request has no key.
    pub fn ticket(&self, now: Millis) -> Option<(String, Millis)> {
        match &self.0 {
            Rights::Open(_) => None,
            Rights::Key { record, secret, .. } => Some(ticket::new_text(&record.id, secret, now)),
        }
    }

    /// Checks that the key has a scope.
    ///
    /// # Errors
    /// If its scope is smaller.
    pub fn allows(&self, needed: Scope) -> Result<(), Error> {
        match self.key_record() {
            Some(record) if record.scope < needed => Err(Error::scope(record.scope, needed)),
            _ => Ok(()),
        }
    }

    /// Checks that the request may set fields of settings that are for admins.
    ///
    /// # Errors
    /// If its key has another scope.
    pub fn allows_to_set(&self, fields: &[&str]) -> Result<(), Error> {
        match self.key_record() {
            Some(record) if record.scope < Scope::Admin => {
                Err(Error::fields_for_admins(record.scope, fields))
            }
            _ => Ok(()),
        }
    }

    /// True if the request may know that a project exists.
    pub fn sees(&self, project: &str) -> bool {
        self.key_record().is_none_or(|record| record.has_project(project))
    }

    /// Checks that the request may use a project.
    ///
    /// # Errors
    /// If not: the same as for a project that does not exist.
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
            None if self.is_of_all_projects() => Ok(()),
            None => {
                Err(Error::missing_because("projectId", "the API key is for some projects only"))
            }
        }
    }

    /// Checks that the request may see what concerns all projects.
    ///
    /// # Errors
    /// If its key is for some projects only.
    pub fn all_projects(&self) -> Result<(), Error> {
        if self.is_of_all_projects() {
            return Ok(());
        }
        Err(Error::forbidden("the API key is for some projects only, and this concerns all"))
    }

    fn is_of_all_projects(&self) -> bool {
        self.key_record().is_none_or(|record| record.projects.is_none())
    }

    /// The projects that a list may show: the one that is named, else all that the key is for; `None` for all.
    ///
    /// # Errors
    /// If the key is not for the named project.
    pub fn visible(&self, named: Option<Id>) -> Result<Option<Vec<Id>>, Error> {
        match named {
            Some(project) => self.project(&project).map(|()| Some(vec![project])),
            None => {
                Ok(self.key_record().and_then(|record| record.projects.clone()).map(|mut own| {
                    own.sort_unstable();
                    own.dedup();
                    own
                }))
            }
        }
    }

    /// True if data, results and progress are hidden.
    pub fn is_metadata_only(&self) -> bool {
        self.key_record().is_some_and(|record| record.metadata_only)
    }

    /// Checks that the request may see the content of jobs.
    ///
    /// # Errors
    /// If the key hides `what`.
    pub fn content(&self, what: &str) -> Result<(), Error> {
        if self.is_metadata_only() {
            return Err(Error::forbidden(format!("the API key has metadataOnly and hides {what}")));
        }
        Ok(())
    }

    /// Waits until the request would be refused: its key is revoked or expired, its secret was replaced,
    /// or keys are needed from now on.
    pub async fn ended(&self) {
        let (secret, mut current) = match &self.0 {
            Rights::Open(closed) => return closed.cancelled().await,
            Rights::Key { secret, current, .. } => (secret, current.clone()),
        };
        loop {
            let record = current.borrow_and_update().clone();
            let now = service::now_ms();
            let until = record.and_then(|record| record.accepted_until(secret, now));
            let Some(until) = until else { return };
            let left = until.map(|until| u64::try_from(until - now).unwrap_or(0));
            let expiry = async {
                match left {
                    Some(left) => tokio::time::sleep(Duration::from_millis(left)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = current.changed() => if changed.is_err() { return },
                () = expiry => {}
            }
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
