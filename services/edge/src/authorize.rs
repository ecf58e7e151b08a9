//! Which scope a request needs. A refused change is recorded with the project that it is about.

use axum::{
    extract::{FromRequest, Request},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use nats::api_keys::Scope;

use crate::{
    audit::AuditNote,
    body::{self, Body},
    keys::Access,
};

/// Refuses requests that need a larger scope than their key has.
pub(crate) async fn authorize(access: Access, request: Request, next: Next) -> Response {
    let Err(error) = access.allows(scope_of(request.method(), request.uri().path())) else {
        return next.run(request).await;
    };
    // For the audit log.
    if let Some(note) = request.extensions().get::<AuditNote>().cloned()
        && let Ok(Body(body)) = Body::from_request(request, &()).await
        && let Some(project) = body::project_in(&body)
    {
        note.project(&project);
    }
    error.into_response()
}

/// The scope that a request needs. A path that is not named here needs one that fits its method.
fn scope_of(method: &Method, path: &str) -> Scope {
    match path {
        "/api/queue/enqueue" | "/api/queue/redo" => Scope::Enqueue,
        "/api/tickets" => Scope::Read,
        "/api/audit" | "/api/keys" => Scope::Admin,
        _ if path.starts_with("/api/keys/") => Scope::Admin,
        _ if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) => Scope::Read,
        _ => Scope::Manage,
    }
}
