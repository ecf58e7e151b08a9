//! GET /api/queue/jobs/{jobId}/result: what the handler of a job returned, whatever its size.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Response},
};
use job::{Job, Status};
use tokio_util::io::ReaderStream;

use super::status::find_job;
use crate::{
    app::App,
    body::NoQuery,
    error::Error,
    ids,
    keys::Access,
    openapi::{Anything, QuestionError},
};

/// How long the next bytes of a stored result may take.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Shows the result of a completed job as its handler returned it.
#[utoipa::path(
    get, path = "/api/queue/jobs/{jobId}/result", tag = "queue", operation_id = "result",
    params(("jobId" = uuid::Uuid, Path)),
    responses((status = 200, description = "The result.", body = Anything, content_type = "application/json"), QuestionError),
)]
pub(crate) async fn result(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let Path(id) = id.map_err(|_| Error::invalid("jobId must be the UUID of a job"))?;
    let id = ids::job_id("jobId", &id)?;
    access.content("results")?;
    let Some(job) = find_job(&app, &access, id).await? else {
        return Err(Error::result_not_found(format!("job {id} is archived without its result")));
    };
    let body = match (&job.history().result, job.history().stored) {
        (Some(result), _) => Body::from(result.get().to_owned()),
        (None, Some(stored)) => stored_result(&app, &job, stored.bytes).await?,
        (None, None) => return Err(no_result(&job)),
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn stored_result(app: &App, job: &Job, bytes: u64) -> Result<Body, Error> {
    let object = app.broker.get_result(job.id, job.run).await.map_err(|error| {
        tracing::warn!(job.id = %job.id, %error, "stored result not read");
        Error::unanswered()
    })?;
    let Some(object) = object else {
        let text = format!("the result of job {} ({bytes} bytes) has expired", job.id);
        return Err(Error::result_not_found(text));
    };
    let chunks = futures_util::stream::unfold(Some(ReaderStream::new(object)), |reader| async {
        use futures_util::StreamExt;
        let mut reader = reader?;
        match tokio::time::timeout(READ_WITHIN, reader.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(reader))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Err(late) => Some((Err(std::io::Error::other(late)), None)),
        }
    });
    Ok(Body::from_stream(chunks))
}

fn no_result(job: &Job) -> Error {
    let (id, status) = (job.id, job.status.name());
    Error::result_not_found(match job.status {
        Status::Completed => format!("job {id} completed without a result"),
        _ => format!("job {id} is {status} and has no result"),
    })
}
