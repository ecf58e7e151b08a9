//! From events to rows: a pure function, so that the same events always give the same block.

use clickhouse::Row;
use job::{
    JobLabels, Position, RequeueReason, Usage, error_group,
    event::{Batch, Ended, Event, LateRun, Transition},
    time::Millis,
    trace::TraceContext,
};
use serde::Serialize;

/// One row of `job_runs`. Times are ms since 1970.
#[derive(Clone, Debug, PartialEq, Row, Serialize)]
pub(crate) struct RunRow {
    pub sequence: u64,
    pub idx: u32,
    pub at: Millis,
    pub project: String,
    pub batch: String,
    #[serde(with = "clickhouse::serde::uuid")]
    pub job: uuid::Uuid,
    #[serde(rename = "type")]
    pub job_type: String,
    #[serde(rename = "class")]
    pub priority_class: String,
    pub run: u32,
    pub attempt: u32,
    pub outcome: String,
    pub r#final: u8,
    pub ran: u8,
    pub queued_at: Millis,
    pub started_at: Millis,
    pub finished_at: Millis,
    pub wait_ms: u64,
    pub duration_ms: u64,
    pub tokens_in: u64,
    pub tokens_out: u64,
    pub images: u64,
    pub model: String,
    pub worker: String,
    pub error: String,
    pub error_group: u64,
    /// The id of its trace in hexadecimal digits; empty without one.
    pub trace_id: String,
    /// The span of its request, if that is traced.
    #[serde(skip_serializing)]
    pub trace: Option<TraceContext>,
}

/// The rows of message `sequence` of EVENTS.
pub(crate) fn rows(sequence: u64, batch: &Batch) -> Vec<RunRow> {
    let rows = batch.at_sequence(sequence).filter_map(|(position, event)| match event {
        // Internal jobs are not billed.
        Event::Ended(ended) if ended.labels.job_type.is_internal() => None,
        Event::Ended(ended) => Some(ended_row(position, batch.at, ended)),
        Event::Refused(refused) => {
            let late = refused.ended.as_ref().filter(|late| !late.labels.job_type.is_internal())?;
            Some(late_row(position, batch.at, late, &refused.reason))
        }
        _ => None,
    });
    rows.collect()
}

fn ended_row(position: Position, at: Millis, ended: &Ended) -> RunRow {
    let times = Times { at, started: ended.started_at, finished: ended.finished_at };
    let mut row = row(position, ended.job, &ended.labels, ended.run, &times, &ended.usage);
    row.outcome = match &ended.to {
        Transition::Completed { .. } => "completed",
        Transition::Failed => "failed",
        Transition::Canceled { .. } => "canceled",
        Transition::Queued(again) => match again.why {
            RequeueReason::Retry => "retry",
            RequeueReason::Lost => "lost",
            RequeueReason::Released => "released",
            RequeueReason::Deferred => "deferred",
        },
    }
    .to_owned();
    // A run that was handed back or deferred does not show how long the work takes.
    if matches!(row.outcome.as_str(), "released" | "deferred") {
        row.ran = 0;
    }
    row.r#final = u8::from(ended.to.status().is_terminal());
    row.worker = ended.worker.as_deref().unwrap_or_default().to_owned();
    row.error = ended.error.as_deref().unwrap_or_default().to_owned();
    row.error_group = error_group(&row.error);
    row
}

fn late_row(position: Position, at: Millis, late: &LateRun, reason: &str) -> RunRow {
    let times = Times { at, started: late.started_at, finished: Some(late.finished_at) };
    let mut row = row(position, late.job, &late.labels, late.run, &times, &late.usage);
    row.outcome = "refused".to_owned();
    row.worker = late.worker.to_string();
    row.error = reason.to_owned();
    row.error_group = error_group(&row.error);
    row
}

/// The start and end of a run by its worker's clock, and the time at which its end was processed.
struct Times {
    at: Millis,
    started: Option<Millis>,
    finished: Option<Millis>,
}

fn row(
    position: Position,
    job: job::JobId,
    labels: &JobLabels,
    run: job::Run,
    times: &Times,
    usage: &Usage,
) -> RunRow {
    let finished = times.finished.unwrap_or(times.at);
    let between = |from: Millis, to: Millis| u64::try_from(to - from).unwrap_or(0);
    RunRow {
        sequence: position.sequence,
        idx: position.index,
        at: times.at,
        project: labels.project.to_string(),
        batch: labels.batch.to_string(),
        job,
        job_type: labels.job_type.name().to_owned(),
        priority_class: labels.priority_class.name().to_owned(),
        run,
        attempt: labels.attempt,
        outcome: String::new(),
        r#final: 0,
        ran: u8::from(times.started.is_some() && times.finished.is_some()),
        queued_at: labels.queued_at,
        started_at: times.started.unwrap_or(0),
        finished_at: finished,
        wait_ms: times.started.map_or(0, |started| between(labels.queued_at, started)),
        duration_ms: times.started.map_or(0, |started| between(started, finished)),
        tokens_in: usage.input_tokens,
        tokens_out: usage.output_tokens,
        images: usage.images,
        model: usage.model.as_deref().unwrap_or_default().to_owned(),
        worker: String::new(),
        error: String::new(),
        error_group: 0,
        trace_id: labels.trace.map(|it| format!("{:032x}", it.trace_id)).unwrap_or_default(),
        trace: labels.trace,
    }
}
