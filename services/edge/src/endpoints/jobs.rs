//! GET /api/queue/jobs: lists of jobs; GET /api/queue/batches/{batchId}: the jobs of a batch.
//!
//! Active jobs come from state, terminal ones from ClickHouse, which is asked for what state knew
//! when it answered: no job is missing between the two.

use std::collections::HashSet;

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
};
use job::{Id, JobId, JobType, Status};
use nats::{
    names,
    query::{EndedAnswer, EndedCursor, EndedJobsQuery, JobsAnswer, JobsQuery, RunFilter},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Answer, PATIENCE, named, ok, page_limit,
    parameters::{self, RunParameters},
};
use crate::{
    app::App,
    body,
    error::Error,
    ids,
    keys::Access,
    openapi::{ClientJobType, QuestionError},
    view::JobView,
};

/// Jobs of a batch that are shown: its live ones, and the last that ended.
const BATCH_JOBS_MAX: usize = 100;
const STATUSES: [Status; 5] =
    [Status::Queued, Status::Processing, Status::Completed, Status::Failed, Status::Canceled];

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = JobList)]
pub(crate) struct Listed {
    success: bool,
    jobs: Vec<JobView>,
    /// The start of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = BatchStatus)]
pub(crate) struct Batch {
    success: bool,
    batch: BatchView,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Batch)]
struct BatchView {
    #[schema(value_type = String)]
    project_id: Id,
    #[schema(value_type = String)]
    batch_id: Id,
    /// `pending`, `processing`, `completed`, `failed` or `canceled`.
    status: &'static str,
    jobs: Vec<JobView>,
}

/// Which jobs to list.
struct Filter {
    runs: RunFilter,
    batch: Option<Id>,
    status: Option<Status>,
    job_type: Option<JobType>,
    limit: usize,
}

impl Filter {
    /// True if only terminal jobs can match: an active one has no end, and no error or model to be found by.
    fn is_of_terminal(&self) -> bool {
        let RunFilter { model, error_group, from, to, .. } = &self.runs;
        self.status.is_some_and(Status::is_terminal)
            || model.is_some()
            || error_group.is_some()
            || from.is_some()
            || to.is_some()
    }
}

/// The start of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// Among the live jobs, below an id.
    Live(Option<JobId>),
    /// Among terminal jobs, before an end.
    Ended(Option<EndedCursor>),
}

impl Cursor {
    fn read(text: &str) -> Option<Self> {
        let (part, place) = text.split_once('-')?;
        match part {
            "live" => Some(Self::Live(Some(place.parse().ok()?))),
            "ended" if place.is_empty() => Some(Self::Ended(None)),
            "ended" => {
                let (position, at) = place.split_once('-')?;
                let (position, at) = (position.parse().ok()?, at.parse().ok()?);
                Some(Self::Ended(Some(EndedCursor { position, at })))
            }
            _ => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Live(place) => format!("live-{}", place.unwrap_or(JobId::max())),
            Self::Ended(None) => "ended-".to_owned(),
            Self::Ended(Some(EndedCursor { position, at })) => format!("ended-{position}-{at}"),
        }
    }
}

/// Lists jobs: active ones first, then terminal ones, the last ended first.
#[utoipa::path(
    get, path = "/api/queue/jobs", tag = "queue",
    params(
        ("projectId" = Option<String>, Query, description = "All projects of the key if absent.", min_length = 1, max_length = 128),
        ("batchId" = Option<String>, Query, min_length = 1, max_length = 128),
        ("status" = Option<Status>, Query),
        ("type" = Option<ClientJobType>, Query),
        ("processor" = Option<String>, Query, description = "The processor that runs them, or ended them.", min_length = 1, max_length = 128),
        ("model" = Option<String>, Query, description = "Terminal jobs whose last run named this model.", min_length = 1, max_length = 128),
        ("errorGroup" = Option<String>, Query, description = "Terminal jobs whose last error is of this group.", pattern = "^[0-9a-fA-F]{16}$"),
        ("from" = Option<String>, Query, description = "Jobs that ended at this time or later, RFC 3339."),
        ("to" = Option<String>, Query, description = "Jobs that ended before this time, RFC 3339."),
        ("limit" = Option<u32>, Query, description = "50 where absent.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before."),
    ),
    responses((status = 200, description = "As it is now.", body = Listed), QuestionError),
)]
pub(crate) async fn list_jobs(State(app): State<App>, access: Access, uri: Uri) -> Answer<Listed> {
    let names = [
        "projectId",
        "batchId",
        "status",
        "type",
        "processor",
        "model",
        "errorGroup",
        "from",
        "to",
        "limit",
        "cursor",
    ];
    let [project, batch, status, job_type, processor, model, error_group, from, to, limit, cursor] =
        body::query(&uri, names)?;
    let job_type_named = job_type.as_deref().map(parameters::job_type).transpose()?;
    let runs = RunParameters { project, job_type, model, processor, error_group, from, to };
    let filter = Filter {
        runs: runs.filter(&access)?,
        batch: batch.map(|id| ids::id("batchId", &id)).transpose()?,
        status: status.map(|name| named("status", &name, &STATUSES, Status::name)).transpose()?,
        job_type: job_type_named,
        limit: page_limit(limit.as_deref())?,
    };
    let cursor = match cursor {
        Some(text) => Cursor::read(&text)
            .ok_or_else(|| Error::invalid("cursor must be the nextCursor of an answer"))?,
        None if filter.is_of_terminal() => Cursor::Ended(None),
        None => Cursor::Live(None),
    };
    let (mut jobs, next) = match cursor {
        Cursor::Live(before) => match live(&app, &filter, before).await? {
            // Without active jobs, the first page shows terminal ones.
            (none, Some(Cursor::Ended(_))) if none.is_empty() => ended(&app, &filter, None).await?,
            page => page,
        },
        Cursor::Ended(before) => ended(&app, &filter, before).await?,
    };
    hide(&access, &mut jobs);
    ok(Listed { success: true, jobs, next_cursor: next.map(Cursor::text) })
}

/// Shows a batch: its status, and its jobs.
#[utoipa::path(
    get, path = "/api/queue/batches/{batchId}", tag = "queue",
    params(("batchId" = String, Path, min_length = 1, max_length = 128), ("projectId" = String, Query, min_length = 1, max_length = 128)),
    responses((status = 200, description = "As it is now.", body = Batch), QuestionError),
)]
pub(crate) async fn get_batch(
    State(app): State<App>,
    access: Access,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Batch> {
    let [project] = body::query(&uri, ["projectId"])?;
    let Path(id) = id.map_err(|_| Error::invalid("batchId in the path must be UTF-8"))?;
    let project = project.ok_or_else(|| Error::missing("projectId"))?;
    let project = ids::id("projectId", &project)?;
    access.project(&project)?;
    let runs = RunFilter { projects: Some(vec![project.clone()]), ..RunFilter::default() };
    let filter = Filter {
        runs,
        batch: Some(ids::id("batchId", &id)?),
        status: None,
        job_type: None,
        limit: BATCH_JOBS_MAX,
    };
    let (mut jobs, _) = live(&app, &filter, None).await?;
    let any = |jobs: &[JobView], status: Status| jobs.iter().any(|job| job.is(status));
    let mut status = if any(&jobs, Status::Processing) {
        Some("processing")
    } else if any(&jobs, Status::Queued) {
        Some("pending")
    } else {
        None
    };
    let (ended, _) = ended(&app, &filter, None).await?;
    // One that ended between the two looks is shown as that.
    jobs.retain(|live| !ended.iter().any(|ended| ended.id() == live.id()));
    jobs.extend(ended);
    if status.is_none() {
        status = STATUSES
            .into_iter()
            .find(|it| jobs.first().is_some_and(|job| job.is(*it)))
            .map(Status::name);
    }
    let Some(status) = status else {
        let text = format!("no job of batch {id:?} in project {project:?}");
        return Err(Error::batch_not_found(text));
    };
    hide(&access, &mut jobs);
    let batch_id = filter.batch.unwrap_or_else(|| id.into());
    ok(Batch { success: true, batch: BatchView { project_id: project, batch_id, status, jobs } })
}

/// Hides what the key may not see.
fn hide(access: &Access, jobs: &mut [JobView]) {
    if access.is_metadata_only() {
        jobs.iter_mut().for_each(JobView::hide_content);
    }
}

/// A page of live jobs.
async fn live(
    app: &App,
    filter: &Filter,
    before: Option<JobId>,
) -> Result<(Vec<JobView>, Option<Cursor>), Error> {
    let answer = ask_state(app, filter, before, filter.limit, Vec::new()).await?;
    let next = match answer.next {
        Some(next) => Some(Cursor::Live(Some(next))),
        None if filter.status.is_none_or(Status::is_terminal) => Some(Cursor::Ended(None)),
        None => None,
    };
    Ok((answer.jobs.into_iter().map(JobView::summary).collect(), next))
}

/// A page of ended jobs.
async fn ended(
    app: &App,
    filter: &Filter,
    before: Option<EndedCursor>,
) -> Result<(Vec<JobView>, Option<Cursor>), Error> {
    // What state knows now, ClickHouse has to know when it answers.
    let event = ask_state(app, filter, None, 0, Vec::new()).await?.event;
    let question = EndedJobsQuery {
        filter: filter.runs.clone(),
        batch: filter.batch.as_ref().map(ToString::to_string),
        outcome: filter.status.map(|status| status.name().to_owned()),
        before,
        limit: filter.limit,
        event,
    };
    let answer = app.broker.query(names::QUERY_ENDED, &question, PATIENCE * 3).await;
    let answer: EndedAnswer = answer.map_err(|error| {
        tracing::warn!(error = %error, "ended jobs without metrics");
        Error::away("metrics", "metrics does not answer, and only it knows the ended jobs")
    })?;
    let ids = answer.jobs.iter().map(|(_, id, _)| *id).collect();
    let again: HashSet<JobId> =
        ask_state(app, filter, None, 0, ids).await?.live.into_iter().collect();
    let jobs = answer.jobs.into_iter().filter(|(_, id, _)| !again.contains(id));
    let jobs = jobs.map(|(_, id, job)| JobView::ended(id, job)).collect();
    Ok((jobs, answer.next.map(|next| Cursor::Ended(Some(next)))))
}

async fn ask_state(
    app: &App,
    filter: &Filter,
    before: Option<JobId>,
    limit: usize,
    live: Vec<JobId>,
) -> Result<JobsAnswer, Error> {
    let question = JobsQuery {
        projects: filter.runs.projects.clone(),
        batch: filter.batch.clone(),
        status: filter.status,
        job_type: filter.job_type,
        processor: filter.runs.processor.as_deref().map(Id::from),
        before,
        limit,
        live,
    };
    app.ask_state(names::QUERY_JOBS, &question).await.map_err(|error| {
        tracing::warn!(error = %error, "jobs without state");
        Error::away("state", "state does not answer, and only it knows the live jobs")
    })
}

#[cfg(test)]
mod tests {
    use job::Position;

    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let id = JobId::from_u128(7);
        let end = EndedCursor { position: Position::new(3, 4), at: 5 };
        for cursor in [Cursor::Live(Some(id)), Cursor::Ended(None), Cursor::Ended(Some(end))] {
            assert_eq!(Cursor::read(&cursor.text()), Some(cursor));
        }
        for odd in ["", "live", "live-x", "ended-x", "dead-1.2"] {
            assert_eq!(Cursor::read(odd), None, "{odd}");
        }
    }
}
