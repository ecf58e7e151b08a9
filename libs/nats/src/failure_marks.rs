//! Marks of error groups: those that people have muted or resolved.
//!
//! A mark is of all projects or of one; of two marks of a group, the later one counts. The bucket `failures` has a map for
//! all projects and one for each project with marks. A resolved group that is seen again is reopened by that, without a write.

use std::{collections::BTreeMap, fmt};

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use job::{Id, time::Millis};
use serde::{Deserialize, Serialize};

use crate::{Broker, SubjectToken, names};

/// How many groups can be marked for one project, and for all.
pub const MARKS_MAX: usize = 1_000;
/// How often a change is made again because another one came first.
const ATTEMPTS: u32 = 10;
/// The key of the marks of all projects.
const OF_ALL: &str = "all";

/// What a group is marked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FailureMark {
    /// As if it had no mark: a project can open what is muted for all.
    Open,
    /// It is not listed among active groups, even if it is seen again.
    Muted,
    /// It is not listed among active groups until it is seen again.
    Resolved,
}

/// A mark, and its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// The mark.
    pub mark: FailureMark,
    /// When it was made, in ms since 1970.
    pub at: Millis,
    /// The name of the API key, if the request had one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
}

/// Marks by error group.
pub type Marks = BTreeMap<u64, Marked>;

/// A mark could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are as many marks as there can be.
    #[error("{MARKS_MAX} error groups are muted or resolved already: open some of them")]
    TooMany,
    /// The broker did not answer, or refused.
    #[error("marks of error groups could not be {step}: {why}")]
    Nats {
        /// What failed.
        step: &'static str,
        /// Why.
        why: String,
    },
}

fn failed(step: &'static str, error: &dyn fmt::Display) -> Error {
    Error::Nats { step, why: error.to_string() }
}

/// The marks of a mesh.
#[derive(Clone, Debug)]
pub struct MarkStore(Store);

impl MarkStore {
    /// The marks of the mesh behind `broker`.
    ///
    /// # Errors
    /// If their bucket cannot be opened.
    pub async fn open(broker: &Broker) -> Result<Self, Error> {
        let store = broker.js.get_key_value(names::FAILURES).await;
        Ok(Self(store.map_err(|error| failed("read", &error))?))
    }

    /// The marks that count for a project, or for a list of all.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn read(&self, project: Option<&Id>) -> Result<Marks, Error> {
        let (mut marks, _) = self.entry(OF_ALL).await?;
        if let Some(project) = project {
            for (group, own) in self.entry(&key_of(Some(project))).await?.0 {
                match marks.get(&group) {
                    Some(of_all) if of_all.at > own.at => {}
                    _ => drop(marks.insert(group, own)),
                }
            }
        }
        marks.retain(|_, marked| marked.mark != FailureMark::Open);
        Ok(marks)
    }

    /// Marks a group for a project, or for all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set(&self, project: Option<&Id>, group: u64, marked: Marked) -> Result<(), Error> {
        let key = key_of(project);
        let is_open = marked.mark == FailureMark::Open;
        // Only a project can have something to open that it has not marked itself.
        let of_all = match project {
            Some(_) => self.entry(OF_ALL).await?.0,
            None => Marks::new(),
        };
        for _ in 0..ATTEMPTS {
            let (mut marks, revision) = self.entry(&key).await?;
            let before = marks.clone();
            marks.insert(group, marked.clone());
            // What is open without a mark of all needs none.
            marks.retain(|id, own| own.mark != FailureMark::Open || of_all.contains_key(id));
            if is_open && marks == before {
                return Ok(());
            }
            if marks.len() > MARKS_MAX {
                return Err(Error::TooMany);
            }
            if self.put(&key, &marks, revision).await? {
                return Ok(());
            }
        }
        Err(failed("stored", &"other changes came first"))
    }

    /// Stores marks if nothing has changed since `revision`; returns whether it did.
    async fn put(&self, key: &str, marks: &Marks, revision: Option<u64>) -> Result<bool, Error> {
        let json = Bytes::from(serde_json::to_vec(marks).expect("marks are JSON"));
        let Some(revision) = revision else {
            return match self.0.create(key, json).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(failed("stored", &error)),
            };
        };
        match self.0.update(key, json, revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(failed("stored", &error)),
        }
    }

    /// Marks with their revision.
    async fn entry(&self, key: &str) -> Result<(Marks, Option<u64>), Error> {
        let entry = self.0.entry(key).await.map_err(|error| failed("read", &error))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
            return Ok((Marks::new(), None));
        };
        let marks = serde_json::from_slice(&entry.value);
        Ok((marks.map_err(|error| failed("parsed", &error))?, Some(entry.revision)))
    }
}

fn key_of(project: Option<&Id>) -> String {
    match project {
        None => OF_ALL.to_owned(),
        Some(project) => format!("project.{}", SubjectToken::new(project)),
    }
}
