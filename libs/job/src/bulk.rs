//! Bulk operations: changes of many jobs of one project.
//!
//! Such a request can name hundreds of thousands of jobs. Unless it is small, it is recorded as an operation, which the
//! leader then carries out in slices, each small enough to fit one message of EVENTS. Other commands and questions are
//! processed between two slices. An operation applies to the jobs that existed when it was recorded, and its
//! requester gets the reply with the last slice. The operations of a project run one after the other; those of
//! several projects take turns.

use std::collections::{HashSet, VecDeque};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Digest, Id, Idempotency, Job, JobFilter, JobId, Position, operation::OperationPart,
    reply::Reply, time::Millis,
};

/// Ids of retried jobs that a reply lists; their number is always exact.
const REPLY_JOBS_MAX: usize = 10_000;

/// An operation in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkOperation {
    /// The project whose jobs it changes.
    pub project: Id,
    /// What it does.
    pub action: BulkAction,
    /// Makes a repeated request harmless.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency: Option<Idempotency>,
    /// The reply subject; absent if the publisher expects no reply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requester: Option<Requester>,
    /// The event that started it. Set when that is applied.
    #[serde(default)]
    pub started: Position,
    /// When that was.
    #[serde(default)]
    pub started_at: Millis,
    /// Progress of the finished slices.
    #[serde(default)]
    pub progress: BulkProgress,
}

/// What a bulk operation does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BulkAction {
    /// Cancel active jobs.
    Cancel {
        /// Of these batches; of all if absent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        batches: Option<Vec<Id>>,
    },
    /// Queue all failed jobs again.
    RetryFailed,
    /// Queue those failed jobs again that match.
    RetryMatching(JobFilter),
    /// Do what an operation of a client does to one project.
    Operation(Box<OperationPart>),
}

impl BulkOperation {
    /// An operation without a requester.
    pub(crate) fn new(project: Id, action: BulkAction, idempotency: Option<Idempotency>) -> Self {
        Self {
            project,
            action,
            idempotency,
            requester: None,
            // All jobs of this moment exist before it.
            started: Position::end_of(u64::MAX),
            started_at: Millis::MAX,
            progress: BulkProgress::default(),
        }
    }

    /// The reply, if `slice` is the last.
    pub(crate) fn reply(&self, slice: &BulkProgress) -> Reply {
        let mut progress = self.progress.clone();
        progress.add(slice);
        match self.action {
            BulkAction::Cancel { .. } => {
                Reply::Canceled { jobs: progress.jobs, batches: progress.batches }
            }
            BulkAction::RetryFailed | BulkAction::RetryMatching(_) => Reply::Retried {
                jobs: progress.retried,
                count: progress.jobs,
                left: progress.skipped,
            },
            // Its requester got the reply when it started.
            BulkAction::Operation(_) => Reply::Noted,
        }
    }

    /// True if a job is not newer than the operation, and was not retried since that started.
    pub(crate) fn applies_to(&self, job: &Job) -> bool {
        job.order < self.started && job.history().retried.is_none_or(|at| at < self.started)
    }
}

/// The address of a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requester {
    /// The NATS subject.
    pub inbox: String,
    /// The id of the command.
    pub item: Uuid,
}

/// How far a bulk operation has come, or what one slice adds to that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkProgress {
    /// The last job that was looked at: the key of its batch (0 in a retry) and its id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<(u64, JobId)>,
    /// Jobs that were looked at.
    #[serde(default)]
    pub looked_at: u64,
    /// Jobs that were changed.
    pub jobs: u64,
    /// Batches of canceled jobs.
    #[serde(default)]
    pub batches: u64,
    /// The key of the last batch in that number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_batch: Option<u64>,
    /// The first jobs that were queued again.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub retried: Vec<JobId>,
    /// Failed jobs that were not queued again.
    #[serde(default)]
    pub skipped: u64,
}

impl BulkProgress {
    pub(crate) fn add(&mut self, slice: &Self) {
        self.after = slice.after.or(self.after);
        self.looked_at += slice.looked_at;
        self.jobs += slice.jobs;
        self.batches += slice.batches;
        self.last_batch = slice.last_batch.or(self.last_batch);
        let room = REPLY_JOBS_MAX.saturating_sub(self.retried.len());
        self.retried.extend(slice.retried.iter().take(room));
        self.skipped += slice.skipped;
    }
}

/// The operations of all projects. The first operation of the first project is next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BulkQueue(VecDeque<(Id, VecDeque<BulkOperation>)>);

impl BulkQueue {
    pub(crate) fn push(&mut self, operation: BulkOperation) {
        match self.0.iter_mut().find(|(project, _)| *project == operation.project) {
            Some((_, operations)) => operations.push_back(operation),
            None => self.0.push_back((operation.project.clone(), VecDeque::from([operation]))),
        }
    }

    /// Adds operations of different projects.
    pub(crate) fn push_all(&mut self, operations: impl Iterator<Item = BulkOperation>) {
        let known: HashSet<Id> = self.0.iter().map(|(project, _)| project.clone()).collect();
        for operation in operations {
            match known.contains(&operation.project) {
                true => self.push(operation),
                false => {
                    self.0.push_back((operation.project.clone(), VecDeque::from([operation])));
                }
            }
        }
    }

    /// Takes the operations of a project out of the queue.
    pub(crate) fn take(&mut self, project: &Id) -> VecDeque<BulkOperation> {
        let at = self.0.iter().position(|(of, _)| of == project);
        at.and_then(|at| self.0.remove(at)).map(|(_, operations)| operations).unwrap_or_default()
    }

    /// Puts them back behind those of all other projects.
    pub(crate) fn put_back(&mut self, project: &Id, operations: VecDeque<BulkOperation>) {
        if !operations.is_empty() {
            self.0.push_back((project.clone(), operations));
        }
    }

    /// Removes the operations that are not to be kept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&BulkOperation) -> bool) {
        for (_, operations) in &mut self.0 {
            operations.retain(&mut keep);
        }
        self.0.retain(|(_, operations)| !operations.is_empty());
    }

    pub(crate) fn len_of(&self, project: &Id) -> usize {
        self.0.iter().find(|(of, _)| of == project).map_or(0, |(_, operations)| operations.len())
    }

    pub(crate) fn find(&self, key: Digest) -> Option<&BulkOperation> {
        let all = self.0.iter().flat_map(|(_, operations)| operations);
        all.into_iter().find(|operation| operation.idempotency.is_some_and(|own| own.key == key))
    }

    pub(crate) fn next(&self) -> Option<&BulkOperation> {
        self.0.front().and_then(|(_, operations)| operations.front())
    }
}
