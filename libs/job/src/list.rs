//! Lists of active jobs and of projects.

use std::sync::Arc;

use crate::{
    Counts, Id, Job, JobId, JobType, Settings, State, Status, active_jobs::newest_first, internal,
};

/// Jobs that are looked at for one page of a list.
const LOOK_JOBS_MAX: usize = 2_000;

/// Which active jobs are listed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ActiveFilter<'a> {
    /// Of these projects; of all if absent.
    pub projects: Option<&'a [Id]>,
    /// Of this batch alone.
    pub batch: Option<&'a Id>,
    /// In this status alone.
    pub status: Option<Status>,
    /// Of this type alone.
    pub job_type: Option<JobType>,
    /// Running at this processor alone.
    pub processor: Option<&'a Id>,
}

impl ActiveFilter<'_> {
    fn matches(&self, job: &Job) -> bool {
        self.batch.is_none_or(|batch| job.batch == *batch)
            && self.job_type.is_none_or(|job_type| job.job_type == job_type)
            && self
                .processor
                .is_none_or(|processor| job.history().worker.as_ref() == Some(processor))
    }
}

/// A project in a list.
#[derive(Clone, Copy, Debug)]
pub struct ListedProject<'a> {
    /// Its id.
    pub id: &'a Id,
    /// Its jobs by status.
    pub counts: &'a Counts,
    /// Its settings.
    pub settings: &'a Settings,
    /// Bytes of the data of its active jobs.
    pub active_bytes: u64,
    /// How many schedules it has.
    pub schedules: usize,
}

impl State {
    /// Active jobs that match, the newest first by their ids: at most `limit` whose ids come before `before`, and
    /// the start of the next page.
    pub fn active_page(
        &self,
        filter: &ActiveFilter<'_>,
        before: Option<JobId>,
        limit: usize,
    ) -> (Vec<Arc<Job>>, Option<JobId>) {
        let status = match (filter.processor, filter.status) {
            // Only running jobs have a processor.
            (Some(_), None) => Some(Status::Processing),
            (Some(_), Some(status)) if status != Status::Processing => return Default::default(),
            (_, status) => status,
        };
        if limit == 0 {
            return Default::default();
        }
        let before = before.unwrap_or(JobId::max());
        let projects = &self.persisted.projects;
        let named = filter.projects.into_iter().flatten().filter_map(|id| projects.get(id));
        let all = projects.iter().filter(|(id, project)| {
            filter.projects.is_none() && project.counts.active() > 0 && !internal::is_internal(id)
        });
        let of_projects = named.chain(all.map(|(_, project)| project));
        let sequences = of_projects.flat_map(|project| match filter.batch {
            Some(batch) => project.live.newest_of_batch(batch, before),
            None => project.live.newest(filter.job_type, status, before),
        });
        let mut page = Vec::new();
        let mut last = None;
        for (looked_at, id) in newest_first(sequences).enumerate() {
            if page.len() >= limit || looked_at >= LOOK_JOBS_MAX {
                return (page, last);
            }
            last = Some(id);
            // Before it is read: most may be spilled.
            if status.is_none_or(|status| self.persisted.jobs.status(id) == Some(status)) {
                page.extend(self.job(id).filter(|job| filter.matches(job)));
            }
        }
        (page, None)
    }

    /// How many projects are known.
    pub fn project_count(&self) -> usize {
        self.persisted.projects.len()
    }

    /// The projects that have jobs, settings or schedules, in no order.
    pub fn projects(&self) -> impl Iterator<Item = ListedProject<'_>> {
        let listed = self.persisted.projects.iter();
        let listed =
            listed.filter(|(id, project)| !project.is_empty() && !internal::is_internal(id));
        listed.map(|(id, project)| ListedProject {
            id,
            counts: &project.counts,
            settings: &project.settings,
            active_bytes: project.live.bytes(),
            schedules: project.schedules.len(),
        })
    }
}
