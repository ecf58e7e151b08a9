//! The dry run of an operation: counted by state in slices, and by the edge where jobs have to be read.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use job::{Id, Job, JobFilter, Status, operation::OperationAction, preview::PreviewSlice};
use nats::{names, query::PreviewQuery};
use serde::Serialize;
use utoipa::ToSchema;

use super::DryRun;
use crate::{app::App, endpoints::status, error::Error, keys::Access, view::JobView};

/// Jobs that are shown.
const SAMPLES_MAX: usize = 5;
/// Projects and statuses that are listed.
const COUNTS_MAX: usize = 100;
/// How long a dry run may take.
const WITHIN: Duration = Duration::from_secs(20);

/// How many jobs of a project have a status.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperationCount)]
pub(super) struct ProjectCount {
    #[schema(value_type = String)]
    project_id: Id,
    status: Status,
    jobs: u64,
}

/// Counts the jobs that an operation would change.
pub(super) async fn preview(
    app: &App,
    access: &Access,
    action: OperationAction,
    projects: Option<Vec<Id>>,
    filter: JobFilter,
) -> Result<DryRun, Error> {
    let begun = Instant::now();
    let mut counts: BTreeMap<(Id, &'static str), (Status, u64)> = BTreeMap::new();
    let mut samples: Vec<Job> = Vec::new();
    let mut query = PreviewQuery { action, projects, filter, from: None, samples_max: SAMPLES_MAX };
    loop {
        query.samples_max = SAMPLES_MAX - samples.len();
        let slice: PreviewSlice =
            app.ask_state(names::QUERY_PREVIEW, &query).await.map_err(|error| {
                tracing::warn!(%error, "dry run without state");
                Error::away("state", "jobs cannot be counted at the moment; send the request again")
            })?;
        let mut add = |project: Id, status: Status, jobs: u64| {
            counts.entry((project, status.name())).or_insert((status, 0)).1 += jobs;
        };
        for (project, status, jobs) in slice.counts {
            add(project, status, jobs);
        }
        samples.extend(slice.samples);
        status::read_terminal(app, &slice.unread, |job| {
            if job.status == Status::Failed && query.filter.matches(&job) {
                add(job.project.clone(), job.status, 1);
                if samples.len() < SAMPLES_MAX {
                    samples.push(job);
                }
            }
        })
        .await?;
        status::read_terminal(app, &slice.sample_ids, |job| samples.push(job)).await?;
        samples.truncate(SAMPLES_MAX);
        query.from = slice.next;
        if query.from.is_none() {
            break;
        }
        if begun.elapsed() > WITHIN {
            return Err(Error::dry_run_too_long(WITHIN));
        }
    }
    let jobs = counts.values().map(|(_, jobs)| jobs).sum();
    let counts = counts.into_iter();
    let mut counts: Vec<ProjectCount> = counts
        .map(|((project_id, _), (status, jobs))| ProjectCount { project_id, status, jobs })
        .collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.jobs));
    counts.truncate(COUNTS_MAX);
    let mut samples: Vec<JobView> = samples.into_iter().map(JobView::summary).collect();
    if access.is_metadata_only() {
        samples.iter_mut().for_each(JobView::hide_content);
    }
    Ok(DryRun { jobs, counts, samples })
}
