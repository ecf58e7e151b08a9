//! One change of a job, as subscribers are sent it.

use axum::body::Bytes;
use job::{
    Id, JobId, Position,
    event::{Batch, Change},
    time::rfc3339,
};
use serde::Serialize;

/// A change, written once for all who want it.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub position: Position,
    pub project: Id,
    pub batch: Id,
    pub job: JobId,
    /// The server-sent event.
    pub frame: Bytes,
}

/// The lines of one message of EVENTS.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub sequence: u64,
    pub lines: Vec<Frame>,
}

/// The data of an event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    job_id: JobId,
    project_id: &'a Id,
    batch_id: &'a Id,
    status: &'static str,
    run: job::Run,
    at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'a job::Json>,
}

impl Message {
    /// How much of memory its lines take, without what they share.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|frame| size_of::<Frame>() + frame.frame.len()).sum()
    }

    /// The events of a message, without the data and results of jobs.
    pub fn of(sequence: u64, batch: &Batch) -> Self {
        let at = rfc3339(batch.at);
        let changes = batch.at_sequence(sequence);
        let lines =
            changes.filter_map(|(position, event)| Some(frame_of(position, &at, &event.change()?)));
        Self { sequence, lines: lines.collect() }
    }
}

fn frame_of(position: Position, at: &str, change: &Change<'_>) -> Frame {
    let data = Data {
        job_id: change.job,
        project_id: change.project,
        batch_id: change.batch,
        status: change.status.name(),
        run: change.run,
        at,
        worker: change.worker,
        error: change.error,
        progress: change.progress,
    };
    let name = if change.progress.is_some() { "progress" } else { change.status.name() };
    Frame {
        position,
        project: change.project.clone(),
        batch: change.batch.clone(),
        job: change.job,
        frame: frame(Some(position), name, &data),
    }
}

/// A server-sent event with JSON for its data, which holds no line breaks.
pub(super) fn frame(id: Option<Position>, event: &str, data: &impl Serialize) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    let data = serde_json::to_string(data).expect("ids and texts are JSON");
    format!("{id}event: {event}\ndata: {data}\n\n").into()
}
