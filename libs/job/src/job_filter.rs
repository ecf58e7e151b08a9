//! Selects jobs of a project for a bulk operation.

use serde::{Deserialize, Serialize};

use crate::{Id, Job, JobId, JobType, Status, error_group, time::Millis};

/// Some jobs of a project; all by default. Every field that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobFilter {
    /// Only these jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<Vec<JobId>>,
    /// Only jobs in this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Only jobs of this type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub job_type: Option<JobType>,
    /// Only jobs of this batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<Id>,
    /// Only jobs that this processor runs, or ran last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<Id>,
    /// Only jobs whose last error is of this [group](crate::error_group).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_group: Option<u64>,
    /// Only jobs that were enqueued before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_before: Option<Millis>,
    /// Only jobs that ended at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Millis>,
    /// Only jobs that ended before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Millis>,
}

impl JobFilter {
    /// True if every job matches.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// True if type and status alone decide: then no job must be read.
    pub(crate) fn is_indexed(&self) -> bool {
        let Self { jobs, batch, processor, error_group, created_before, from, to, .. } = self;
        jobs.is_none()
            && batch.is_none()
            && processor.is_none()
            && error_group.is_none()
            && created_before.is_none()
            && from.is_none()
            && to.is_none()
    }

    /// True if a job matches.
    pub fn matches(&self, job: &Job) -> bool {
        let Self { jobs, status, job_type, batch, processor, .. } = self;
        let history = job.history();
        let group = || error_group(history.error.as_deref().unwrap_or_default());
        let ended = history.completed_at;
        jobs.as_ref().is_none_or(|jobs| jobs.contains(&job.id))
            && status.is_none_or(|status| job.status == status)
            && job_type.is_none_or(|job_type| job.job_type == job_type)
            && batch.as_ref().is_none_or(|batch| job.batch == *batch)
            && processor.as_ref().is_none_or(|own| history.worker.as_ref() == Some(own))
            && self.created_before.is_none_or(|before| job.created_at < before)
            && self.from.is_none_or(|from| ended.is_some_and(|at| at >= from))
            && self.to.is_none_or(|to| ended.is_some_and(|at| at < to))
            && self.error_group.is_none_or(|wanted| group() == wanted)
    }
}
