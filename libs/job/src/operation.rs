//! Operations: changes of many jobs that clients start, follow and abort.
//!
//! An operation consists of one [bulk operation](crate::bulk) per project. It is finished when the last of them is.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Id, JobFilter, PriorityClass, Status, time::Millis};

/// Operations in progress, over all projects.
pub(crate) const RUNNING_MAX: usize = 2_000;
/// Operations in progress that name the same project.
pub(crate) const RUNNING_OF_PROJECT_MAX: usize = 20;
/// Ended operations that are kept: the newest.
const ENDED_MAX: usize = 2_000;
/// The same of those that concern the same projects: one client does not push out the operations of others.
const ENDED_OF_PROJECTS_MAX: usize = 100;

/// A change of many jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its id, made by the edge.
    pub id: Uuid,
    /// What it does.
    pub action: OperationAction,
    /// Only jobs of these projects; of all if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub projects: Option<Vec<Id>>,
    /// Which of their jobs.
    pub filter: JobFilter,
    /// Why, in the words of the requester.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Id>,
    /// The name of the API key that started it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requested_by: Option<Id>,
    /// Its status.
    #[serde(default)]
    pub status: OperationStatus,
    /// When it started.
    #[serde(default)]
    pub started_at: Millis,
    /// When it finished or was aborted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended_at: Option<Millis>,
    /// The name of the API key that aborted it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aborted_by: Option<Id>,
    /// Jobs that it has to look at, as of its start.
    #[serde(default)]
    pub candidates: u64,
    /// Jobs that it has looked at.
    #[serde(default)]
    pub looked_at: u64,
    /// Jobs that it has changed.
    #[serde(default)]
    pub changed: u64,
    /// Failed jobs that matched and were not queued again: superseded by a newer job, or past their retention.
    #[serde(default)]
    pub skipped: u64,
    /// Projects that it has not finished.
    #[serde(default)]
    pub projects_left: usize,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationAction {
    /// Queue failed jobs again.
    Retry,
    /// Cancel queued and running jobs.
    Cancel,
    /// Cancel queued jobs, as if they had expired. Running jobs continue.
    Expire,
    /// Change the priority of queued jobs. A job that is already handed to a processor keeps its place.
    SetPriority {
        /// 0 to 1000, lower first.
        priority: u16,
    },
}

impl OperationAction {
    /// The statuses of jobs that it changes.
    pub fn statuses(self) -> &'static [Status] {
        match self {
            Self::Retry => &[Status::Failed],
            Self::Cancel => &[Status::Queued, Status::Processing],
            Self::Expire | Self::SetPriority { .. } => &[Status::Queued],
        }
    }

    /// The one status that it changes, unless there are more.
    pub(crate) fn only_status(self) -> Option<Status> {
        match self.statuses() {
            [status] => Some(*status),
            _ => None,
        }
    }
}

/// The status of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OperationStatus {
    /// In progress.
    #[default]
    Running,
    /// It has looked at all jobs.
    Finished,
    /// A client stopped it. What it had changed stays changed.
    Aborted,
}

/// The part of an operation that concerns one project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationPart {
    /// The operation.
    pub operation: Uuid,
    /// What it does.
    pub action: OperationAction,
    /// The class of the new priority, if it sets one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority_class: Option<PriorityClass>,
    /// Which jobs of the project.
    pub filter: JobFilter,
}

/// The start of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStarted {
    /// The operation.
    pub operation: Operation,
    /// The class of the new priority, if it sets one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority_class: Option<PriorityClass>,
    /// The projects that have jobs for it.
    pub of_projects: Vec<Id>,
}

/// The operations in progress and those that ended last, in the order of their start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Operations(VecDeque<Operation>);

impl Operations {
    pub(crate) fn push(&mut self, operation: Operation) {
        let projects = operation.projects.clone();
        self.0.push_back(operation);
        self.trim(ENDED_OF_PROJECTS_MAX, |other| other.projects == projects);
        self.trim(ENDED_MAX, |_| true);
    }

    /// Removes the oldest of the ended operations that match, until at most `max` are left.
    fn trim(&mut self, max: usize, matches: impl Fn(&Operation) -> bool) {
        let matches = |operation: &Operation| operation.ended_at.is_some() && matches(operation);
        let mut surplus = self.0.iter().filter(|it| matches(it)).count().saturating_sub(max);
        self.0.retain(|operation| {
            let is_surplus = surplus > 0 && matches(operation);
            surplus -= usize::from(is_surplus);
            !is_surplus
        });
    }

    pub(crate) fn get_mut(&mut self, id: Uuid) -> Option<&mut Operation> {
        self.0.iter_mut().find(|operation| operation.id == id)
    }

    /// Adds what one slice did to an operation, and returns it.
    pub(crate) fn add(
        &mut self,
        id: Uuid,
        looked_at: u64,
        changed: u64,
        skipped: u64,
    ) -> Option<&mut Operation> {
        let operation = self.get_mut(id)?;
        operation.looked_at += looked_at;
        operation.changed += changed;
        operation.skipped += skipped;
        Some(operation)
    }

    /// In the order of their start.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Operation> {
        self.0.iter()
    }

    /// How many are in progress; with a project, how many of those name it.
    pub(crate) fn running(&self, project: Option<&Id>) -> usize {
        let names = |operation: &&Operation, project: &Id| {
            operation.projects.as_ref().is_some_and(|projects| projects.contains(project))
        };
        let running = self.0.iter().filter(|operation| operation.ended_at.is_none());
        running.filter(|operation| project.is_none_or(|id| names(operation, id))).count()
    }
}

impl Operation {
    /// An operation that has not started.
    pub fn new(
        id: Uuid,
        action: OperationAction,
        projects: Option<Vec<Id>>,
        filter: JobFilter,
    ) -> Self {
        Self {
            id,
            action,
            projects,
            filter,
            reason: None,
            requested_by: None,
            status: OperationStatus::Running,
            started_at: 0,
            ended_at: None,
            aborted_by: None,
            candidates: 0,
            looked_at: 0,
            changed: 0,
            skipped: 0,
            projects_left: 0,
        }
    }

    pub(crate) fn end(&mut self, at: Millis, status: OperationStatus) {
        self.status = status;
        self.ended_at = Some(at);
        self.projects_left = 0;
    }
}
