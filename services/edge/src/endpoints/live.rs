//! GET /api/queue/live: counts as server-sent events, once a second if they have changed.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::Uri,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use job::Id;
use serde::Serialize;

use super::stats::{self, Queue, Worker};
use crate::{
    app::App,
    body,
    error::Error,
    ids,
    keys::{Access, TICKET_PARAMETER},
    live::LiveCounts,
    openapi::QuestionError,
};

/// How long a stream may be without an event: a proxy could take it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The data of an event.
#[derive(Serialize)]
struct Live<'a> {
    /// The last event of the mesh that the counts include: when it has changed, so may have any list.
    position: String,
    queue: &'a Queue,
    worker: &'a Worker,
}

/// Streams the answer of `stats` as events `stats`, at once and then at most once a second, if it has changed. The field
/// `position` changes with every change of any job. An event `unavailable` means that state does not answer.
#[utoipa::path(
    get, path = "/api/queue/live", tag = "queue",
    params(
        ("projectId" = Option<String>, Query, description = "All projects if absent.", min_length = 1, max_length = 128),
        ("ticket" = Option<String>, Query, description = "Instead of an API key, see createTicket.", pattern = "^jt_[0-9A-Za-z]+_[0-9]{1,15}_[0-9a-f]{64}$"),
    ),
    responses((status = 200, description = "Counts, as they change.", body = String, content_type = "text/event-stream"), QuestionError),
)]
pub(crate) async fn live(
    State(app): State<App>,
    access: Access,
    uri: Uri,
) -> Result<Response, Error> {
    let [project, _] = body::query(&uri, ["projectId", TICKET_PARAMETER])?;
    let project = project.map(|id| ids::id("projectId", &id)).transpose()?;
    access.project_or_all(project.as_ref())?;
    let permits = app.waiting.enter(&access, project.as_ref())?;
    let (reader, of) = (app.clone(), project.clone());
    let counts = app.live.subscribe(project, move || read(reader.clone(), of.clone()));
    // A stream ends with its key.
    let events = events(counts).take_until(async move {
        access.ended().await;
        drop(permits);
    });
    let headers = super::event_stream_headers();
    Ok((headers, Body::from_stream(events)).into_response())
}

/// Reads the counts of a project, or of all, as an event.
async fn read(app: App, project: Option<Id>) -> Bytes {
    let answer = match stats::query(&app, project.as_ref()).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "no live counts");
            return Bytes::from_static(b"event: unavailable\ndata: {}\n\n");
        }
    };
    let (queue, worker) = stats::views(&answer);
    let position = answer.position.to_string();
    let live = Live { position, queue: &queue, worker: &worker };
    let data = serde_json::to_string(&live).expect("counts are JSON");
    Bytes::from(format!("event: stats\ndata: {data}\n\n"))
}

/// The counts as they are, each change of them, and comments in between.
fn events(mut counts: LiveCounts) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    counts.mark_changed();
    stream::unfold(counts, |mut counts| async move {
        loop {
            let changed = tokio::time::timeout(KEEP_ALIVE, counts.changed()).await;
            let event = match changed {
                Ok(Ok(())) => counts.borrow_and_update().clone(),
                Ok(Err(_)) => return None,
                Err(_) => Some(Bytes::from_static(b": no change\n\n")),
            };
            if let Some(event) = event {
                return Some((Ok(event), counts));
            }
        }
    })
}
