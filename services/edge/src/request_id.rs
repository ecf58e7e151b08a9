//! One id a request, taken from the client where it brings one, in the answer and in every line
//! of the log.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;
use uuid::Uuid;

static HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken from a client, in bytes.
const ID_BYTES_MAX: usize = 128;

/// The id of a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub String);

/// Gives the request its id.
pub(crate) async fn give(mut request: Request, next: Next) -> Response {
    let brought = request.headers().get(&HEADER).and_then(|id| id.to_str().ok());
    let brought = brought.filter(|id| (1..=ID_BYTES_MAX).contains(&id.len()));
    let id = brought.map_or_else(|| Uuid::now_v7().simple().to_string(), str::to_owned);
    let span = tracing::info_span!(
        "request",
        request.id = %id,
        method = %request.method(),
        path = request.uri().path(),
    );
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER.clone(), value);
    }
    response
}
