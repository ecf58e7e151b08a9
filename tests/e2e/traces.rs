//! A collector of OpenTelemetry receives one trace from the request to the row in ClickHouse.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value as Any,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message;
use serde_json::json;

use crate::{
    mesh::{Mesh, until},
    receiver::Receiver,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector, with the name of the service of each span.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Collector {
    async fn start() -> anyhow::Result<(Self, String)> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let collector = Self::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((collector, url))
    }

    fn all(&self) -> Vec<(String, Span)> {
        self.spans.lock().unwrap().clone()
    }

    /// The spans of a name, in the order of their starts.
    fn named(&self, name: &str) -> Vec<Span> {
        let spans = self.all().into_iter().map(|(_, span)| span);
        let mut spans: Vec<Span> = spans.filter(|span| span.name == name).collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).expect("it is OTLP");
    collector.headers.lock().unwrap().push(headers);
    for of_resource in request.resource_spans {
        let attributes = of_resource.resource.map(|it| it.attributes).unwrap_or_default();
        let name = attributes.iter().find(|it| it.key == "service.name");
        let name = match name.and_then(|it| it.value.clone()?.value) {
            Some(Any::StringValue(name)) => name,
            other => panic!("a service has a name: {other:?}"),
        };
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        collector.spans.lock().unwrap().extend(spans.map(|span| (name.clone(), span)));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(span: &Span) -> HashMap<&str, String> {
    let text = |value: &Any| match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let values = span.attributes.iter();
    values
        .filter_map(|it| Some((it.key.as_str(), text(it.value.as_ref()?.value.as_ref()?))))
        .collect()
}

/// Enqueues a job in a trace of the caller's; returns its id.
async fn enqueue(
    mesh: &Mesh,
    batch: &str,
    kind: &str,
    traceparent: Option<String>,
) -> anyhow::Result<String> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let body =
        json!({ "projectId": "p", "batchId": batch, "data": { "do": kind }, "maxAttempts": 2 });
    let mut request = client.post(mesh.url("/api/queue/enqueue")).json(&body);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let answer: serde_json::Value = request.send().await?.error_for_status()?.json().await?;
    Ok(answer["jobId"].as_str().expect("its id").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_request_to_the_row() -> anyhow::Result<()> {
    let receiver = Receiver::start().await?;
    let (collector, url) = Collector::start().await?;
    let mesh = receiver.mesh(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=me"),
        ("JOBMESH_TRACE_RATIO", "0"),
    ])?;
    let sampled = |flag: &str| Some(format!("00-{TRACE}-{PARENT}-{flag}"));
    enqueue(&mesh, "of-nobody", "done", None).await?;
    enqueue(&mesh, "unsampled", "done", sampled("00")).await?;
    let failed = enqueue(&mesh, "failed", "fail", sampled("01")).await?;
    let done = enqueue(&mesh, "done", "done", sampled("01")).await?;
    until("all spans", async || {
        let rows = collector.named("insert job_runs").len();
        Ok(if rows >= 3 { Ok(()) } else { Err(format!("{:?}", collector.all())) })
    })
    .await?;
    until("spans of requests", async || {
        let requests = collector.named("POST /api/queue/enqueue").len();
        Ok(if requests == 2 { Ok(()) } else { Err(format!("{requests} requests")) })
    })
    .await?;
    let all = collector.all();
    // Two requests, and for each of three runs its wait, its execution and its row.
    assert_eq!(all.len(), 2 + 3 * 3, "{all:?}");
    assert!(all.iter().all(|(_, span)| hex(&span.trace_id) == TRACE), "{all:?}");
    for (service, span) in &all {
        let is_of_edge = span.name.starts_with("POST");
        assert_eq!(service, if is_of_edge { "jobmesh-edge" } else { "jobmesh-metrics" });
    }
    assert!(collector.headers.lock().unwrap().iter().all(|headers| headers["x-tenant"] == "me"));

    let requests = collector.named("POST /api/queue/enqueue");
    assert!(requests.iter().all(|span| hex(&span.parent_span_id) == PARENT));
    let runs = collector.named("run process_batch");
    let of = |job: &str| {
        let runs = runs.iter().filter(|span| attributes(span)["jobmesh.job.id"] == job);
        runs.cloned().collect::<Vec<Span>>()
    };
    let [first, second] = of(&failed).try_into().expect("two runs");
    let [only] = of(&done).try_into().expect("one run");
    assert_eq!(first.parent_span_id, second.parent_span_id);
    assert!(requests.iter().any(|request| request.span_id == first.parent_span_id));
    assert_ne!(first.parent_span_id, only.parent_span_id);
    // A retry follows the run before.
    assert!(first.links.is_empty() && only.links.is_empty());
    assert_eq!(second.links[0].span_id, first.span_id);
    for run in [&first, &second] {
        let status = run.status.clone().expect("a failed run has a status");
        assert_eq!(status.code(), StatusCode::Error);
        assert!(status.message.contains("502"), "{}", status.message);
    }
    let known = attributes(&only);
    for (name, value) in [
        ("jobmesh.project.id", "p"),
        ("jobmesh.outcome", "completed"),
        ("gen_ai.response.model", "small"),
        ("gen_ai.usage.input_tokens", "10"),
        ("gen_ai.usage.output_tokens", "3"),
    ] {
        assert_eq!(known[name], value);
    }
    // The wait ends where the run begins, and the row belongs to the run.
    let waits = collector.named("wait process_batch");
    let rows = collector.named("insert job_runs");
    for run in &runs {
        assert!(waits.iter().any(|wait| wait.end_time_unix_nano == run.start_time_unix_nano));
        assert!(rows.iter().any(|row| row.parent_span_id == run.span_id));
    }
    // A handler can add spans of its own to its run.
    for (job, spans) in [(&failed, vec![&first, &second]), (&done, vec![&only])] {
        let received: Vec<String> =
            receiver.runs(job).into_iter().map(|run| run.traceparent).collect();
        let expected: Vec<String> =
            spans.iter().map(|span| format!("00-{TRACE}-{}-01", hex(&span.span_id))).collect();
        assert_eq!(received, expected);
    }
    let query = "SELECT countIf(trace_id = ''), countIf(trace_id != ''), any(trace_id) FROM job_runs WHERE batch IN ('failed', 'done')";
    assert_eq!(mesh.sql(query).await?, format!("0\t3\t{TRACE}"));
    let others = mesh
        .sql("SELECT countIf(trace_id != '') FROM job_runs WHERE batch NOT IN ('failed', 'done')");
    assert_eq!(others.await?, "0");
    Ok(())
}
