//! What an operation would change: counted in slices, so that no question takes long.

use serde::{Deserialize, Serialize};

use crate::{
    Id, Job, JobFilter, JobId, State, Status, active_jobs::batch_key, internal,
    operation::OperationAction, snapshot::Project, time::Millis,
};

/// Jobs that one slice looks at.
const LOOK_JOBS_MAX: usize = 1_000;
/// Projects that one slice looks at.
const LOOK_PROJECTS_MAX: usize = 500;

/// What one slice of a preview found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PreviewSlice {
    /// How many jobs match, by project and status.
    pub counts: Vec<(Id, Status, u64)>,
    /// Some of them, without their data.
    pub samples: Vec<Job>,
    /// Jobs that are counted, and that the caller reads for more samples.
    pub sample_ids: Vec<JobId>,
    /// Failed jobs that memory has evicted: the caller reads them, and [applies](JobFilter::matches) the filter.
    pub unread: Vec<JobId>,
    /// The start of the next slice; absent after the last.
    pub next: Option<PreviewCursor>,
}

/// The start of a slice of a preview.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviewCursor {
    /// The project.
    pub project: Id,
    /// The job before it; none at the start of the project.
    pub after: Option<JobId>,
}

impl State {
    /// How many jobs of a project an operation has to look at.
    pub(crate) fn candidates(
        &self,
        project: &Project,
        action: OperationAction,
        filter: &JobFilter,
    ) -> u64 {
        match (action, &filter.jobs, &filter.batch) {
            (OperationAction::Retry, Some(jobs), _) => {
                jobs.iter().filter(|id| project.failed.contains_key(id)).count() as u64
            }
            (_, Some(jobs), _) => {
                jobs.iter().filter(|id| project.live.contains(**id)).count() as u64
            }
            (OperationAction::Retry, None, _) => project.failed.len() as u64,
            (_, None, Some(batch)) => project.perhaps_of(batch).count() as u64,
            (_, None, None) => {
                project.live.count(filter.job_type, filter.status.or(action.only_status())) as u64
            }
        }
    }

    /// Counts jobs that an operation would change, from `from` on.
    pub fn preview(
        &self,
        action: OperationAction,
        filter: &JobFilter,
        projects: Option<&[Id]>,
        from: Option<&PreviewCursor>,
        samples_max: usize,
        now: Millis,
    ) -> PreviewSlice {
        let mut all: Vec<(&Id, &Project)> = match projects {
            Some(named) => {
                named.iter().filter_map(|id| self.persisted.projects.get_key_value(id)).collect()
            }
            None => {
                let all = self.persisted.projects.iter();
                all.filter(|(id, _)| !internal::is_internal(id)).collect()
            }
        };
        all.retain(|(id, _)| from.is_none_or(|from| **id >= from.project));
        all.retain(|(_, project)| self.candidates(project, action, filter) > 0);
        all.sort_unstable_by_key(|(id, _)| *id);
        all.dedup_by_key(|(id, _)| *id);
        let mut slice = PreviewSlice::default();
        let mut left = LOOK_JOBS_MAX;
        for (nth, (id, project)) in all.into_iter().enumerate() {
            if left == 0 || nth == LOOK_PROJECTS_MAX {
                slice.next = Some(PreviewCursor { project: id.clone(), after: None });
                break;
            }
            let after = from.filter(|from| from.project == *id).and_then(|from| from.after);
            let mut look = Look { state: self, id, project, filter, samples_max, now };
            let last = match action {
                OperationAction::Retry => look.failed(after, &mut left, &mut slice),
                _ => look.active(action, after, &mut left, &mut slice),
            };
            if last.is_some() {
                slice.next = Some(PreviewCursor { project: id.clone(), after: last });
                break;
            }
        }
        slice
    }
}

/// A look at one project.
struct Look<'a> {
    state: &'a State,
    id: &'a Id,
    project: &'a Project,
    filter: &'a JobFilter,
    samples_max: usize,
    now: Millis,
}

impl Look<'_> {
    /// Counts active jobs. Returns the last job that it looked at, if there may be more.
    fn active(
        &mut self,
        action: OperationAction,
        after: Option<JobId>,
        left: &mut usize,
        slice: &mut PreviewSlice,
    ) -> Option<JobId> {
        let status = self.filter.status.or(action.only_status());
        if self.filter.is_indexed() {
            for status in action.statuses().iter().filter(|of| status.is_none_or(|s| s == **of)) {
                let count = self.project.live.count(self.filter.job_type, Some(*status)) as u64;
                self.count(*status, count, slice);
            }
            if slice.samples.len() < self.samples_max {
                let room = self.samples_max - slice.samples.len();
                let ids = self.project.live.oldest(self.filter.job_type, status, None, room);
                ids.into_iter().for_each(|id| self.sample(id, slice));
            }
            return None;
        }
        let ids = self.project.active_candidates(self.filter, status, after, *left);
        let is_last = ids.len() < *left;
        *left -= ids.len();
        for id in &ids {
            let Some(job) = self.state.job(*id) else { continue };
            let is_of_action = action.statuses().contains(&job.status);
            if is_of_action && job.project == *self.id && self.filter.matches(&job) {
                self.count(job.status, 1, slice);
                self.sample(*id, slice);
            }
        }
        ids.last().copied().filter(|_| !is_last)
    }

    /// Counts failed jobs. Returns the last job that it looked at, if there may be more.
    fn failed(
        &mut self,
        after: Option<JobId>,
        left: &mut usize,
        slice: &mut PreviewSlice,
    ) -> Option<JobId> {
        if self.filter.is_all() {
            let kept = self.project.failed.values().filter(|until| **until > self.now);
            self.count(Status::Failed, kept.count() as u64, slice);
            let room = self.samples_max.saturating_sub(slice.sample_ids.len());
            let ids = self.project.failed.iter().filter(|(_, until)| **until > self.now);
            slice.sample_ids.extend(ids.map(|(id, _)| *id).take(room));
            return None;
        }
        let ids = self.project.failed_candidates(self.filter, after, *left);
        let is_last = ids.len() < *left;
        *left -= ids.len();
        for (id, until) in &ids {
            if *until <= self.now {
                continue;
            }
            match self.state.job(*id) {
                None => slice.unread.push(*id),
                Some(job) if job.status == Status::Failed && self.filter.matches(&job) => {
                    self.count(Status::Failed, 1, slice);
                    self.sample(*id, slice);
                }
                Some(_) => {}
            }
        }
        ids.last().map(|(id, _)| *id).filter(|_| !is_last)
    }

    fn count(&self, status: Status, jobs: u64, slice: &mut PreviewSlice) {
        let is_counted = |(id, of, _): &&mut (Id, Status, u64)| id == self.id && *of == status;
        match slice.counts.iter_mut().rev().find(is_counted) {
            Some((.., count)) => *count += jobs,
            None if jobs > 0 => slice.counts.push((self.id.clone(), status, jobs)),
            None => {}
        }
    }

    fn sample(&self, id: JobId, slice: &mut PreviewSlice) {
        if slice.samples.len() < self.samples_max
            && let Some(job) = self.state.job(id)
        {
            slice.samples.push(std::sync::Arc::unwrap_or_clone(job).without_data());
        }
    }
}

impl Project {
    /// Active jobs that may match and follow `after`, in the order of their ids: at most `limit`.
    pub(crate) fn active_candidates(
        &self,
        filter: &JobFilter,
        status: Option<Status>,
        after: Option<JobId>,
        limit: usize,
    ) -> Vec<JobId> {
        match (&filter.jobs, &filter.batch) {
            (Some(jobs), _) => named_after(jobs, after).take(limit).collect(),
            (None, Some(batch)) => {
                self.live.of_key_after(batch_key(batch), after).take(limit).collect()
            }
            (None, None) => self.live.oldest(filter.job_type, status, after, limit),
        }
    }

    /// Failed jobs that may match and follow `after`, with the end of their retention, in the order of their ids: at most
    /// `limit`.
    pub(crate) fn failed_candidates(
        &self,
        filter: &JobFilter,
        after: Option<JobId>,
        limit: usize,
    ) -> Vec<(JobId, Millis)> {
        let Some(jobs) = &filter.jobs else {
            return self.failed_after(after).take(limit).collect();
        };
        let kept = |id| self.failed.get(&id).map(|until| (id, *until));
        named_after(jobs, after).filter_map(kept).take(limit).collect()
    }
}

/// The named jobs that follow `after`, in the order of their ids.
fn named_after(jobs: &[JobId], after: Option<JobId>) -> impl Iterator<Item = JobId> {
    let mut ids = jobs.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().filter(move |id| after.is_none_or(|after| *id > after))
}
