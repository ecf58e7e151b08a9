//! The spans of runs, made from their rows: the wait, the execution and the row itself.

use ::traces::{KeyValue, Span, SpanKind, Tracer};
use job::{
    time::Millis,
    trace::{RunSpan, TraceContext},
};

use crate::rows::RunRow;

/// Sends the spans of rows whose insert took from `from` to `to`.
pub(crate) fn send(tracer: &Tracer, rows: &[RunRow], from: Millis, to: Millis) {
    for row in rows {
        if let Some(request) = row.trace {
            spans(row, request, from, to).into_iter().for_each(|span| tracer.send(span));
        }
    }
}

fn spans(row: &RunRow, request: TraceContext, from: Millis, to: Millis) -> Vec<Span> {
    let of = |run, span| request.of_run(row.job, run, span);
    let has_started = row.started_at > 0;
    let job = KeyValue::new("jobmesh.job.id", row.job.to_string());
    let run = KeyValue::new("jobmesh.run", i64::from(row.run));
    let wait = Span {
        context: of(row.run, RunSpan::Wait),
        parent: request.span_id,
        follows: None,
        name: format!("wait {}", row.job_type),
        kind: SpanKind::Internal,
        start: row.queued_at,
        end: if has_started { row.started_at } else { row.finished_at },
        error: None,
        attributes: vec![job.clone(), run.clone()],
    };
    let execution = Span {
        context: of(row.run, RunSpan::Execution),
        parent: request.span_id,
        follows: (row.run > 1).then(|| of(row.run - 1, RunSpan::Execution).span_id),
        name: format!("run {}", row.job_type),
        kind: SpanKind::Consumer,
        start: row.started_at,
        end: row.finished_at,
        error: (!row.error.is_empty()).then(|| row.error.clone()),
        attributes: attributes(row),
    };
    let inserted = Span {
        context: of(row.run, RunSpan::Row),
        parent: if has_started { execution.context.span_id } else { wait.context.span_id },
        follows: None,
        name: "insert job_runs".to_owned(),
        kind: SpanKind::Client,
        start: from,
        end: to,
        error: None,
        attributes: vec![
            KeyValue::new("db.system.name", "clickhouse"),
            KeyValue::new("db.collection.name", "job_runs"),
            job,
            run,
        ],
    };
    let mut spans = vec![wait, inserted];
    if has_started {
        spans.push(execution);
    }
    spans
}

/// Attributes of a run, with the names of OpenTelemetry's conventions.
fn attributes(row: &RunRow) -> Vec<KeyValue> {
    let text = |name: &'static str, value: &str| KeyValue::new(name, value.to_owned());
    let number = |name: &'static str, value: u64| {
        KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
    };
    let mut attributes = vec![
        text("jobmesh.job.id", &row.job.to_string()),
        text("jobmesh.project.id", &row.project),
        text("jobmesh.batch.id", &row.batch),
        text("jobmesh.outcome", &row.outcome),
        text("jobmesh.processor", &row.worker),
        number("jobmesh.run", row.run.into()),
        number("jobmesh.attempt", row.attempt.into()),
    ];
    if !row.model.is_empty() {
        attributes.push(text("gen_ai.response.model", &row.model));
    }
    if row.tokens_in + row.tokens_out > 0 {
        attributes.push(number("gen_ai.usage.input_tokens", row.tokens_in));
        attributes.push(number("gen_ai.usage.output_tokens", row.tokens_out));
    }
    attributes
}
