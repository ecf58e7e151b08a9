//! GET /api/queue/events: changes of jobs as server-sent events, as they happen.
//!
//! One follower of EVENTS an edge feeds all subscribers. A subscriber that does not keep up is
//! told so and cut off; nothing is held in memory for it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::Uri,
    response::sse::{Event as Sse, KeepAlive, Sse as Stream},
};
use futures_util::stream;
use job::{
    Id, JobId, Position,
    event::{Change, Event},
    time::{Millis, rfc3339},
};
use mesh::{Broker, follow, names, wire};
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::{app::App, body, error::Error, ids};

/// Messages of EVENTS that a subscriber may be behind.
const BEHIND_MESSAGES_MAX: usize = 1_024;
/// How often a silent stream shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long to wait before the end of EVENTS is asked for again.
const PAUSE: Duration = Duration::from_millis(250);

/// A message of EVENTS, read once for all subscribers.
struct Heard {
    sequence: u64,
    batch: job::event::Batch,
}

/// A handle to the follower. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Feed {
    heard: broadcast::Sender<Arc<Heard>>,
    stop: CancellationToken,
}

impl Feed {
    /// Starts to follow EVENTS from its end on.
    pub fn start(broker: Broker, stop: CancellationToken) -> Self {
        let (heard, _) = broadcast::channel(BEHIND_MESSAGES_MAX);
        tokio::spawn(feed(broker, heard.clone(), stop.clone()));
        Self { heard, stop }
    }
}

async fn feed(broker: Broker, heard: broadcast::Sender<Arc<Heard>>, stop: CancellationToken) {
    let end = loop {
        match broker.last_sequence(names::EVENTS).await {
            Ok(end) => break end,
            Err(error) => tracing::warn!(error = %error, "EVENTS not followed yet, trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    };
    let mut events = follow::follow(broker, names::EVENTS, end + 1, stop);
    while let Some(message) = events.recv().await {
        let headers = message.headers.as_ref();
        match wire::events(message.sequence, headers, &message.payload) {
            // Nobody subscribed is no error.
            Ok((_, batch)) => {
                drop(heard.send(Arc::new(Heard { sequence: message.sequence, batch })))
            }
            Err(error) => tracing::error!(error = %error, "events passed over"),
        }
    }
}

/// Which changes a subscriber wants.
#[derive(Clone)]
struct Wanted {
    project: Option<Id>,
    job: Option<JobId>,
}

impl Wanted {
    fn wants(&self, change: &Change<'_>) -> bool {
        self.project.as_ref().is_none_or(|project| project == change.project)
            && self.job.is_none_or(|job| job == change.job)
    }
}

/// The data of one event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    job_id: JobId,
    project_id: &'a Id,
    batch_id: &'a Id,
    status: &'static str,
    run: job::Run,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Id>,
}

/// Streams changes of jobs: of all, of a project, or of one job.
pub(crate) async fn stream(
    State(app): State<App>,
    uri: Uri,
) -> Result<Stream<impl stream::Stream<Item = Result<Sse, Infallible>>>, Error> {
    let [project, job] = body::query(&uri, ["projectId", "jobId"])?;
    let wanted = Wanted {
        project: project.map(|id| ids::id("projectId", &id)).transpose()?,
        job: job.map(|id| ids::job_id("jobId", &id)).transpose()?,
    };
    let heard = app.feed.heard.subscribe();
    let reader = Reader { heard, wanted, stop: app.feed.stop.clone(), open: true };
    let chunks = stream::unfold(reader, |mut reader| async {
        let lines = reader.next().await?;
        Some((stream::iter(lines.into_iter().map(Ok)), reader))
    });
    let keep_alive = KeepAlive::new().interval(HEARTBEAT);
    Ok(Stream::new(futures_util::StreamExt::flatten(chunks)).keep_alive(keep_alive))
}

/// One subscriber.
struct Reader {
    heard: broadcast::Receiver<Arc<Heard>>,
    wanted: Wanted,
    stop: CancellationToken,
    open: bool,
}

impl Reader {
    /// The next events for this subscriber; `None` at the end.
    async fn next(&mut self) -> Option<Vec<Sse>> {
        while self.open {
            let heard = tokio::select! {
                () = self.stop.cancelled() => return None,
                heard = self.heard.recv() => heard,
            };
            match heard {
                Ok(heard) => {
                    let lines = lines(&heard, &self.wanted);
                    if !lines.is_empty() {
                        return Some(lines);
                    }
                }
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(messages)) => {
                    self.open = false;
                    let text = format!("{messages} messages were not read in time: connect again");
                    return Some(vec![Sse::default().event("lagged").data(text)]);
                }
            }
        }
        None
    }
}

fn lines(heard: &Heard, wanted: &Wanted) -> Vec<Sse> {
    let events = heard.batch.at_sequence(heard.sequence);
    events.filter_map(|(position, event)| line(position, heard.batch.at, event, wanted)).collect()
}

fn line(position: Position, at: Millis, event: &Event, wanted: &Wanted) -> Option<Sse> {
    let change = event.change().filter(|change| wanted.wants(change))?;
    let line = Line {
        job_id: change.job,
        project_id: change.project,
        batch_id: change.batch,
        status: change.status.name(),
        run: change.run,
        at: rfc3339(at),
        worker: change.worker,
        error: change.error,
    };
    let data = serde_json::to_string(&line).ok()?;
    Some(Sse::default().id(position.to_string()).event(change.status.name()).data(data))
}
