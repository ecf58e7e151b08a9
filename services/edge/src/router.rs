//! Every route, by who it is for.

use axum::{
    Router,
    extract::{DefaultBodyLimit, OriginalUri},
    http::Method,
    middleware,
    routing::{get, post},
};

use crate::{app::App, body, endpoints, error::Error, events, request_id};

/// The routes of the edge.
pub(crate) fn router(app: App) -> Router {
    let commands = Router::new()
        .route("/enqueue", post(endpoints::enqueue))
        .route("/redo", post(endpoints::redo))
        .route("/cancel", post(endpoints::cancel))
        .route("/retry", post(endpoints::retry))
        .layer(middleware::from_fn(body::no_query));
    let queue = Router::new()
        .merge(commands)
        .route("/status/{jobId}", get(endpoints::status))
        .route("/jobs", get(endpoints::list_jobs))
        .route("/batches/{batchId}", get(endpoints::get_batch))
        .route("/stats", get(endpoints::stats))
        .route("/metrics", get(endpoints::metrics))
        .route("/events", get(events::stream));
    let project = get(endpoints::get_project).put(endpoints::put_project);
    let schedule = get(endpoints::get_schedule)
        .put(endpoints::put_schedule)
        .delete(endpoints::delete_schedule);
    let projects = Router::new()
        .route("/{projectId}", project)
        .route("/{projectId}/schedules", get(endpoints::list_schedules))
        .route("/{projectId}/schedules/{name}", schedule)
        .layer(middleware::from_fn(body::no_query));
    let operators = Router::new()
        .route("/healthz", get(endpoints::healthz))
        .route("/readyz", get(endpoints::readyz));
    Router::new()
        .nest("/api/queue", queue)
        .nest("/api/projects", projects)
        .merge(operators)
        .fallback(async |OriginalUri(uri): OriginalUri| Error::no_endpoint(uri.path()))
        .method_not_allowed_fallback(async |method: Method, OriginalUri(uri): OriginalUri| {
            Error::method(method.as_str(), uri.path())
        })
        .layer(DefaultBodyLimit::max(body::BODY_BYTES_MAX))
        .layer(middleware::from_fn(request_id::give))
        .with_state(app)
}
