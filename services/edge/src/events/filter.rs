//! Which changes a subscriber receives.

use job::{Id, JobId};

use super::frame::Frame;

/// Which changes a subscriber receives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Filter {
    /// Every change.
    All,
    /// Those of a project.
    Project(Id),
    /// Those of a batch of a project.
    Batch(Id, Id),
    /// Subscribers of a job, if it belongs to their project.
    Job(JobId, Option<Id>),
}

impl Filter {
    pub(super) fn wants(&self, frame: &Frame) -> bool {
        match self {
            Self::All => true,
            Self::Project(project) => frame.project == *project,
            Self::Batch(project, batch) => frame.project == *project && frame.batch == *batch,
            Self::Job(job, project) => {
                frame.job == *job
                    && project.as_ref().is_none_or(|project| frame.project == *project)
            }
        }
    }
}
