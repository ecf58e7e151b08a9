//! The span of a request.

use ::traces::{KeyValue, Span, SpanKind, Tracer};
use axum::http::StatusCode;
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use crate::measurements::{Routes, method_of};

/// The health checks, which are not traced.
const UNTRACED: [&str; 3] = ["/livez", "/healthz", "/readyz"];

/// Traces a request, in the trace that it brings or in one of its own. The span of a stream ends with the head of its answer.
pub(crate) async fn trace(
    State((tracer, routes)): State<(Tracer, Routes)>,
    mut request: Request,
    next: Next,
) -> Response {
    let brought = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let begun = tracer.begin(brought).filter(|_| !UNTRACED.contains(&request.uri().path()));
    let Some((context, parent)) = begun else { return next.run(request).await };
    request.extensions_mut().insert(context);
    let (method, route) = (method_of(&request), routes.of(request.uri().path()));
    let start = service::now_ms();
    let response = next.run(request).await;
    let status = response.status();
    // Anybody can make such requests.
    if status == StatusCode::UNAUTHORIZED {
        return response;
    }
    let request_id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("http.route", route.clone()),
        KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
    ];
    attributes.extend(request_id.map(|id| KeyValue::new("jobmesh.request.id", id.to_owned())));
    tracer.send(Span {
        context,
        parent,
        follows: None,
        name: format!("{method} {route}"),
        kind: SpanKind::Server,
        start,
        end: service::now_ms(),
        error: status.is_server_error().then(|| status.to_string()),
        attributes,
    });
    response
}
