//! Traces: spans for a collector of OpenTelemetry, over OTLP (HTTP, protobuf).
//!
//! Off by default. A span is made at its end; nothing is recorded before. The ids of the spans of a run follow from the
//! job.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use async_trait::async_trait;
use job::{time::Millis, trace::TraceContext};
use opentelemetry::{
    InstrumentationScope,
    trace::{Link, SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use tokio::{sync::mpsc, task::JoinHandle};
use url::Url;

pub use opentelemetry::{KeyValue, trace::SpanKind};

use service::Identity;

/// Spans that wait to be sent. Further ones are dropped and counted: without a collector they would fill memory.
const WAITING_MAX: usize = 32_768;
/// How long spans may still be sent when a service stops.
const FINISH_WITHIN: Duration = Duration::from_secs(5);
const DROPPED: &str = "jobmesh_dropped_spans_total";
/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;
/// How long a batch that is not full waits for further spans.
const BATCH_WAIT: Duration = Duration::from_millis(500);
/// How long the collector may take.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// The path of spans below the collector's address.
const PATH: &str = "v1/traces";

/// The collector of traces, and how many are taken.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Otlp {
    /// The base URL of an OpenTelemetry collector (OTLP over HTTP), such as `http://127.0.0.1:4318`. No traces are made
    /// if it is absent. Headers for it come from OTEL_EXPORTER_OTLP_HEADERS.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Url>,
    /// The share of requests that are traced, from 0 to 1, if they bring no `traceparent` that decides.
    #[arg(long, env = "JOBMESH_TRACE_RATIO", default_value_t = 1.0)]
    pub trace_ratio: f64,
}

/// A finished span.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace and the id of the span.
    pub context: TraceContext,
    /// The id of the span that caused it; 0 without one.
    pub parent: u64,
    /// The id of an earlier span of the same trace that it follows, such as the run before.
    pub follows: Option<u64>,
    /// The name of the kind of work.
    pub name: String,
    /// Its role.
    pub kind: SpanKind,
    /// When it started, in ms since 1970.
    pub start: Millis,
    /// When it ended.
    pub end: Millis,
    /// What went wrong.
    pub error: Option<String>,
    /// Further attributes, under the names of OpenTelemetry's conventions.
    pub attributes: Vec<KeyValue>,
}

/// Sends what its tracers hand over.
pub struct Exporter {
    /// Hands spans over.
    pub tracer: Tracer,
    sending: JoinHandle<()>,
}

impl Exporter {
    /// Sends the spans that wait, once all clones of the tracer are dropped.
    pub async fn finish(self) {
        drop(self.tracer);
        if tokio::time::timeout(FINISH_WITHIN, self.sending).await.is_err() {
            tracing::warn!("spans were left unsent at the stop");
        }
    }
}

/// Hands spans to the exporter. Cheap to clone.
#[derive(Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Span>,
    ratio: f64,
}

impl Otlp {
    /// Starts to send spans; `None` without a collector.
    ///
    /// # Errors
    /// If its address is not usable, or the certificates of this machine cannot be read.
    pub fn start(&self, identity: Identity) -> anyhow::Result<Option<Exporter>> {
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(None) };
        anyhow::ensure!(
            matches!(endpoint.scheme(), "http" | "https"),
            "--otlp-endpoint must begin with http:// or https://"
        );
        anyhow::ensure!(
            (0.0..=1.0).contains(&self.trace_ratio),
            "--trace-ratio must be from 0 to 1"
        );
        let url = format!("{}/{PATH}", endpoint.as_str().trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(outbound::builder().timeout(SEND_WITHIN).build()?))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(SEND_WITHIN)
            // A retry would block this thread; a batch that is not taken is dropped.
            .with_retry_policy(RetryPolicy::disabled())
            .build();
        let mut exporter = exporter.context("spans cannot be sent")?;
        let name = format!("jobmesh-{}", identity.name());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(name).with_attribute(version);
        exporter.set_resource(&resource.build());
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        metrics::describe_counter!(
            DROPPED,
            "Spans that were not sent, or not taken by the collector."
        );
        metrics::counter!(DROPPED).absolute(0);
        let sending = tokio::spawn(send(exporter, receiver));
        tracing::info!(host = endpoint.host_str(), port = endpoint.port(), "sending traces");
        let tracer = Tracer { spans: sender, ratio: self.trace_ratio };
        Ok(Some(Exporter { tracer, sending }))
    }
}

impl Tracer {
    /// The span of a request: in the trace that it brings, or in a new one; `None` if it is not sampled. The second
    /// value is the id of its parent, 0 without one.
    pub fn begin(&self, traceparent: Option<&str>) -> Option<(TraceContext, u64)> {
        let id = uuid::Uuid::new_v4().as_u128();
        let span_id = ((id >> 64) as u64).max(1);
        if let Some(text) = traceparent
            && let Ok(parent) = text.parse::<TraceContext>()
        {
            let parent = TraceContext::sampled(text).map(|_| parent)?;
            return Some((TraceContext { span_id, ..parent }, parent.span_id));
        }
        let trace_id = uuid::Uuid::new_v4().as_u128();
        // Of the random bits of the id, as many as a float has.
        let share = (trace_id >> 75) as f64 / (1_u64 << 53) as f64;
        (share < self.ratio).then_some((TraceContext { trace_id, span_id }, 0))
    }

    /// Sends a span later; drops it if too many wait.
    pub fn send(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            metrics::counter!(DROPPED).increment(1);
        }
    }
}

/// Sends spans in batches until there is no tracer left. A batch that the collector does not take is dropped.
async fn send(exporter: SpanExporter, mut spans: mpsc::Receiver<Span>) {
    let scope = InstrumentationScope::builder("jobmesh").build();
    let mut is_failing = false;
    loop {
        let mut batch = Vec::new();
        if spans.recv_many(&mut batch, BATCH_MAX).await == 0 {
            return;
        }
        // Others of the same trace follow. The batch is sent once it is full or there is no tracer left.
        let fill = async {
            loop {
                let room = BATCH_MAX - batch.len();
                if room == 0 || spans.recv_many(&mut batch, room).await == 0 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(BATCH_WAIT, fill).await;
        let count = batch.len();
        let data = batch.into_iter().map(|span| data(span, &scope)).collect();
        let sent = exporter.export(data).await;
        if sent.is_err() {
            metrics::counter!(DROPPED).increment(count as u64);
        }
        match (&sent, is_failing) {
            (Err(error), false) => {
                tracing::warn!(%error, "export of spans failed; JOBMESH_LOG=info,traces=debug shows the cause")
            }
            (Ok(()), true) => tracing::info!("export of spans works again"),
            _ => {}
        }
        is_failing = sent.is_err();
    }
}

fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let context = |span_id: u64| {
        let (trace, span_id) = (TraceId::from(span.context.trace_id), SpanId::from(span_id));
        SpanContext::new(trace, span_id, TraceFlags::SAMPLED, false, TraceState::NONE)
    };
    let mut links = SpanLinks::default();
    links.links.extend(span.follows.map(|id| Link::new(context(id), Vec::new(), 0)));
    SpanData {
        span_context: context(span.context.span_id),
        parent_span_id: SpanId::from(span.parent),
        parent_span_is_remote: span.parent != 0,
        span_kind: span.kind,
        name: span.name.into(),
        start_time: system_time(span.start),
        end_time: system_time(span.end.max(span.start)),
        attributes: span.attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links,
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: scope.clone(),
    }
}

fn system_time(at: Millis) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(at).unwrap_or(0))
}

/// The client of HTTP that the other parts use, too.
struct Client(reqwest::Client);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let answer = self.0.execute(request).await.inspect_err(|error| {
            // The exporter reports that there was an error, and not which.
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::debug!(%error, cause, "the collector cannot be reached");
        })?;
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(answer.headers());
        }
        Ok(response.body(answer.bytes().await?)?)
    }
}
