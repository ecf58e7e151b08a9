//! GET /api/queue/status/{jobId}: from state's memory, else the bucket, else ClickHouse.

use axum::extract::{Path, State, rejection::PathRejection};
use job::JobId;
use mesh::{
    ask::{self, Archived, ArchivedAnswer, AskJob, JobAnswer},
    names,
};
use serde::Serialize;

use super::{Answer, PATIENCE, ok};
use crate::{app::App, error::Error, ids, view::JobView};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    success: bool,
    job: JobView,
    /// State did not answer: the bucket may not show the last steps.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    may_be_behind: bool,
}

/// Shows one job.
pub(crate) async fn status(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let Path(id) = id.map_err(|_| Error::invalid("jobId must be the UUID of a job"))?;
    let id = ids::job_id("jobId", &id)?;
    let mut state_away = false;
    match app.ask_state::<_, JobAnswer>(names::ASK_JOB, &AskJob { job: id }).await {
        Ok(JobAnswer { job: Some(job) }) => {
            return ok(Response { success: true, job: JobView::job(job), may_be_behind: false });
        }
        Ok(JobAnswer { job: None }) => {}
        Err(error) => {
            tracing::warn!(error = %error, "status without state");
            state_away = true;
        }
    }
    let read = app.broker.read_job(id).await.map_err(|error| {
        tracing::warn!(error = %error, "status without the bucket");
        Error::unconfirmed()
    })?;
    if let Some(job) = read {
        let job = JobView::job(job);
        return ok(Response { success: true, job, may_be_behind: state_away });
    }
    if let Ok(Some(job)) = archived(&app, id).await {
        let job = JobView::archived(id, job);
        return ok(Response { success: true, job, may_be_behind: state_away });
    }
    if state_away {
        let text =
            format!("job {id} is not in the bucket, and state, which may know it, does not answer");
        return Err(Error::away("state", text));
    }
    Err(Error::job_not_found(format!("no job {id}")))
}

/// The job as ClickHouse has it, where it has.
pub(super) async fn archived(app: &App, id: JobId) -> Result<Option<Archived>, ask::Error> {
    let question = AskJob { job: id };
    let answer: ArchivedAnswer = app.broker.ask(names::ASK_ARCHIVED, &question, PATIENCE).await?;
    Ok(answer.job)
}
