//! Changes of status, as subscribers see them.

use super::Event;
use crate::{Id, JobId, Json, Run, Status, internal};

/// A change of status, as subscribers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<'a> {
    /// The job.
    pub job: JobId,
    /// Its project.
    pub project: &'a Id,
    /// Its batch.
    pub batch: &'a Id,
    /// What it became.
    pub status: Status,
    /// The run it is about.
    pub run: Run,
    /// What went wrong.
    pub error: Option<&'a Id>,
    /// The worker.
    pub worker: Option<&'a Id>,
    /// How far its handler says it is.
    pub progress: Option<&'a Json>,
}

impl Event {
    /// The change of status that this event makes, if it makes one.
    pub fn change(&self) -> Option<Change<'_>> {
        match self {
            // Internal jobs are not shown.
            Self::Enqueued(new) if new.job_type.is_internal() => None,
            Self::Started { of, .. } | Self::Progressed { of, .. }
                if internal::is_internal(&of.project) =>
            {
                None
            }
            Self::Ended(ended) if ended.labels.job_type.is_internal() => None,
            Self::Retried(retried) if retried.job.job_type.is_internal() => None,
            Self::Enqueued(new) => Some(Change {
                job: new.job,
                project: &new.project,
                batch: &new.batch,
                status: Status::Queued,
                run: 1,
                error: None,
                worker: None,
                progress: None,
            }),
            Self::Started { job, of, run, worker, .. } => Some(Change {
                job: *job,
                project: &of.project,
                batch: &of.batch,
                status: Status::Processing,
                run: *run,
                error: None,
                worker: Some(worker),
                progress: None,
            }),
            Self::Progressed { job, of, run, progress } => Some(Change {
                job: *job,
                project: &of.project,
                batch: &of.batch,
                status: Status::Processing,
                run: *run,
                error: None,
                worker: None,
                progress: Some(progress),
            }),
            Self::Ended(ended) => Some(Change {
                job: ended.job,
                project: &ended.labels.project,
                batch: &ended.labels.batch,
                status: ended.to.status(),
                run: ended.to.next_run().unwrap_or(ended.run),
                error: ended.error.as_ref(),
                worker: ended.worker.as_ref(),
                progress: None,
            }),
            Self::Retried(retried) => Some(Change {
                job: retried.job.id,
                project: &retried.job.project,
                batch: &retried.job.batch,
                status: retried.job.status,
                run: retried.job.run,
                error: None,
                worker: None,
                progress: None,
            }),
            Self::LeaderElected { .. }
            | Self::Refused(_)
            | Self::Answered { .. }
            | Self::ProjectSet { .. }
            | Self::ScheduleSet { .. }
            | Self::ScheduleRemoved { .. }
            | Self::ScheduleFired { .. }
            | Self::BulkStarted(_)
            | Self::BulkAdvanced { .. }
            | Self::BulkFinished { .. }
            | Self::OperationStarted(_)
            | Self::OperationAborted { .. }
            | Self::Updated { .. }
            | Self::Partial { .. } => None,
            #[cfg(feature = "next-version")]
            Self::Noted { .. } => None,
        }
    }
}
