//! Labels of a job, which accompany each end of a run.

use serde::{Deserialize, Serialize};

use crate::{Id, Job, JobType, PriorityClass, time::Millis, trace::TraceContext};

/// The labels under which a run is counted. Events of ends carry them, so that a consumer needs no
/// memory of the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobLabels {
    /// The project it belongs to.
    pub project: Id,
    /// The batch it works on.
    pub batch: Id,
    /// What kind of work it is.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// The class it was queued in.
    #[serde(rename = "class")]
    pub priority_class: PriorityClass,
    /// The attempt that ended, from 1; 0 where none began.
    pub attempt: u32,
    /// When it last became queued.
    pub queued_at: Millis,
    /// The span of its request, if that is traced.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<TraceContext>,
}

impl JobLabels {
    /// The current labels of `job`.
    pub fn job(job: &Job) -> Self {
        Self {
            project: job.project.clone(),
            batch: job.batch.clone(),
            job_type: job.job_type,
            priority_class: job.priority_class,
            attempt: job.attempts,
            queued_at: job.queued_at,
            trace: job.history().trace,
        }
    }
}
