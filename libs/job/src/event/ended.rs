//! The ends of runs, and of jobs that had none.

use serde::{Deserialize, Serialize};

use crate::{
    Id, JobId, JobLabels, Json, RequeueReason, Run, Status, StoredResult, Usage, time::Millis,
};

/// The end of a run, or of a job that had none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The job.
    pub job: JobId,
    /// What it is counted under.
    pub labels: JobLabels,
    /// The run that ended.
    pub run: Run,
    /// The worker that ran it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub worker: Option<Id>,
    /// When the run began, by the worker's clock; absent where none did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<Millis>,
    /// When it ended, by the worker's clock; the time of the event where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finished_at: Option<Millis>,
    /// What it cost.
    #[serde(default, skip_serializing_if = "Usage::is_nothing")]
    pub usage: Usage,
    /// True if the run may have started without a report: it counts as a start of its project.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doubtful: bool,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Id>,
    /// What the job became.
    pub to: Transition,
}

/// What a job became when its run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Transition {
    /// Done.
    Completed {
        /// What its handler returned.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        result: Option<Json>,
        /// The result in the result store, if it is too large to be kept here.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        stored: Option<StoredResult>,
    },
    /// Out of attempts, or refused by its handler.
    Failed,
    /// Stopped.
    Canceled {
        /// The job that took its place; absent where a request stopped it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        superseded_by: Option<JobId>,
    },
    /// Queued again.
    Queued(Requeued),
}

/// How a job is queued again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requeued {
    /// Why.
    pub why: RequeueReason,
    /// Its next run.
    pub run: Run,
    /// The attempts that count as started.
    pub attempts: u32,
    /// How often in a row it was taken back without a start.
    #[serde(default)]
    pub take_backs: u32,
    /// Not to be run before this time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_at: Option<Millis>,
}

impl Transition {
    /// The status that the job has after it.
    pub fn status(&self) -> Status {
        match self {
            Self::Completed { .. } => Status::Completed,
            Self::Failed => Status::Failed,
            Self::Canceled { .. } => Status::Canceled,
            Self::Queued(_) => Status::Queued,
        }
    }

    pub(super) fn next_run(&self) -> Option<Run> {
        match self {
            Self::Queued(requeued) => Some(requeued.run),
            _ => None,
        }
    }
}
