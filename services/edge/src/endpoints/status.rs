//! GET /api/queue/status/{jobId}: from state's memory, else the bucket, else ClickHouse.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
};
use job::{Id, Job, JobId};
use nats::{
    names,
    query::{self, Archived, ArchivedAnswer, JobAnswer, JobQuery},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, PATIENCE, ok};
use crate::{
    app::App, body, error::Error, ids, keys::Access, openapi::QuestionError, view::JobView,
};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = JobStatus)]
pub(crate) struct Response {
    success: bool,
    job: JobView,
    /// State did not answer: the bucket may not show the last steps.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    may_be_behind: bool,
}

/// How long an accepted request may take until it is processed, before the client must ask again.
const FOLDED_WITHIN: Duration = Duration::from_secs(1);
/// How soon state is asked again meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The longest that a request may wait for the end of a job.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often a job is polled if its changes cannot be received.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shows one job: at once, or when it is terminal or `wait` is over; with its history if requested.
#[utoipa::path(
    get, path = "/api/queue/status/{jobId}", tag = "queue",
    params(
        ("jobId" = uuid::Uuid, Path),
        ("wait" = Option<String>, Query, description = "How long to wait for the end of the job, at most 60s.", pattern = "^(([0-9]{1,4}|[1-5][0-9]{4}|60000)ms|([0-9]|[1-5][0-9]|60)s?)$"),
        ("history" = Option<bool>, Query, description = "Whether every step is shown."),
    ),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn status(
    State(app): State<App>,
    access: Access,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let [wait, history] = body::query(&uri, ["wait", "history"])?;
    let Path(id) = id.map_err(|_| Error::invalid("jobId must be the UUID of a job"))?;
    let id = ids::job_id("jobId", &id)?;
    let history = match history.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Error::invalid("history must be true or false")),
    };
    let wait = wait.as_deref().map_or(Ok(Duration::ZERO), wait_of)?;
    let _of_key = if wait.is_zero() { None } else { Some(app.waiting.enter(&access, None)?) };
    let mut of_project = None;
    let deadline = Instant::now() + wait;
    // Subscribed before the first read, so that no change in between is missed.
    let mut changes = (!wait.is_zero()).then(|| app.feed.job(id)).flatten();
    loop {
        let mut response = find(&app, &access, id).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        // A client that waits must not hold up an edge that stops.
        if response.job.is_ended() || left.is_zero() || app.feed.is_stopping() {
            response.job.show_history(history);
            if access.is_metadata_only() {
                response.job.hide_content();
            }
            return ok(response);
        }
        if of_project.is_none() {
            of_project = Some(app.waiting.of_project(response.job.project())?);
        }
        let change = async {
            match &mut changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = change => {}
            () = access.ended() => return Err(Error::unknown_key()),
            () = app.feed.stopping() => {}
            // A replica that is behind may have answered: it is asked again soon in any case.
            () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
        }
        if changes.as_ref().is_some_and(|changes| changes.is_over()) {
            changes = None;
        }
    }
}

/// How long to wait: `30s`, `500ms`, or seconds.
fn wait_of(text: &str) -> Result<Duration, Error> {
    let parsed = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => ms.parse().ok().map(Duration::from_millis),
        (None, Some(seconds)) => seconds.parse().ok().map(Duration::from_secs),
        (None, None) => text.parse().ok().map(Duration::from_secs),
    };
    let max = WAIT_MAX.as_secs();
    let text =
        || Error::invalid(format!("wait must be a time such as 30s or 500ms, {max}s at most"));
    parsed.filter(|wait| *wait <= WAIT_MAX).ok_or_else(text)
}

/// The current version of the job.
async fn find(app: &App, access: &Access, id: JobId) -> Result<Response, Error> {
    let (job, may_be_behind) = look_up(app, id).await?;
    if !access.sees(job.project()) {
        return Err(not_found(id));
    }
    let job = match job {
        Found::Job(job) => JobView::job(*job),
        Found::Archived(archived) => JobView::archived(id, *archived),
    };
    Ok(Response { success: true, job, may_be_behind })
}

/// The current version of the job; `None` if only ClickHouse has it.
pub(super) async fn find_job(app: &App, access: &Access, id: JobId) -> Result<Option<Job>, Error> {
    let (found, _) = look_up(app, id).await?;
    match found {
        found if !access.sees(found.project()) => Err(not_found(id)),
        Found::Job(job) => Ok(Some(*job)),
        Found::Archived(_) => Ok(None),
    }
}

/// The project of a job that the request may see.
pub(super) async fn project_of(app: &App, access: &Access, id: JobId) -> Result<Id, Error> {
    let (found, _) = look_up(app, id).await?;
    match found.project() {
        project if access.sees(project) => Ok(project.into()),
        _ => Err(not_found(id)),
    }
}

fn not_found(id: JobId) -> Error {
    Error::job_not_found(format!("no job {id}"))
}

/// A job that was found.
enum Found {
    /// By state or in the bucket.
    Job(Box<Job>),
    /// In ClickHouse alone.
    Archived(Box<Archived>),
}

impl Found {
    fn project(&self) -> &str {
        match self {
            Self::Job(job) => &job.project,
            Self::Archived(archived) => &archived.project,
        }
    }
}

/// A job, and whether it may be older than what state knows.
async fn look_up(app: &App, id: JobId) -> Result<(Found, bool), Error> {
    let first = in_state(app, id).await;
    if let Ok(JobAnswer { job: Some(job), .. }) = first {
        return Ok((Found::Job(Box::new(job)), false));
    }
    let state_away = first.is_err();
    if let Some(found) = elsewhere(app, id).await? {
        return Ok((found, state_away));
    }
    if state_away {
        let text = format!("the state service does not answer, and only it may know job {id}");
        return Err(Error::away("state", text));
    }
    // A request that was accepted may not be processed yet: then its jobs are unknown.
    let end = app.broker.last_sequence(names::COMMANDS).await.map_err(|_| Error::unanswered())?;
    let begun = Instant::now();
    while begun.elapsed() < FOLDED_WITHIN {
        let Ok(answer) = in_state(app, id).await else { break };
        if let Some(job) = answer.job {
            return Ok((Found::Job(Box::new(job)), false));
        }
        if answer.through >= end {
            // Between the two reads the job may have moved from memory to the bucket.
            return match elsewhere(app, id).await? {
                Some(found) => Ok((found, false)),
                None => Err(not_found(id)),
            };
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let text = format!("job {id} is not known yet, and requests wait to be processed; ask again");
    Err(Error::away("state", text))
}

async fn in_state(app: &App, id: JobId) -> Result<JobAnswer, query::Error> {
    let mut answer = app.ask_state::<_, JobAnswer>(names::QUERY_JOB, &JobQuery { job: id }).await;
    if let Ok(answer) = &mut answer {
        answer.job = answer.job.take().filter(|job| !job.job_type.is_internal());
    }
    answer.inspect_err(|error| tracing::warn!(error = %error, "status without state"))
}

/// The job from the bucket, else from ClickHouse.
async fn elsewhere(app: &App, id: JobId) -> Result<Option<Found>, Error> {
    let read = app.broker.read_job(id).await.map_err(|error| {
        tracing::warn!(error = %error, "status without the bucket");
        Error::unanswered()
    })?;
    if let Some(job) = read.filter(|job| !job.job_type.is_internal()) {
        return Ok(Some(Found::Job(Box::new(job))));
    }
    match archived(app, id).await {
        Ok(job) => Ok(job.map(|job| Found::Archived(Box::new(job)))),
        Err(error) => {
            tracing::warn!(error = %error, "status without metrics");
            let text = format!(
                "metrics does not answer, and only it knows whether job {id} is past its retention"
            );
            Err(Error::away("metrics", text))
        }
    }
}

/// The job from ClickHouse, if it has it.
pub(super) async fn archived(app: &App, id: JobId) -> Result<Option<Archived>, query::Error> {
    let question = JobQuery { job: id };
    let answer: ArchivedAnswer =
        app.broker.query(names::QUERY_ARCHIVED, &question, PATIENCE).await?;
    Ok(answer.job)
}

/// Reads terminal jobs, and hands each to `take`, which keeps what it needs: together they may not fit in memory. A job
/// that is not in the bucket is past its retention.
pub(super) async fn read_terminal(
    app: &App,
    ids: &[JobId],
    mut take: impl FnMut(Job),
) -> Result<(), Error> {
    let mut left: Vec<JobId> = ids.to_vec();
    while !left.is_empty() {
        let read = app.broker.read_jobs(&left).await.map_err(|error| {
            tracing::warn!(%error, "terminal jobs without the bucket");
            Error::unanswered()
        })?;
        // Large jobs are left out of an answer.
        let known: HashSet<JobId> = read.iter().map(|(id, _)| *id).collect();
        left.retain(|id| !known.contains(id));
        read.into_iter().filter_map(|(_, job)| job).for_each(&mut take);
    }
    Ok(())
}
