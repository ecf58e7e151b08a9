//! What the edge measures.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use service::prometheus::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const REQUESTS: &str = "jobmesh_http_requests_total";
const DURATIONS: &str = "jobmesh_http_request_seconds";
const FILL: &str = "jobmesh_stream_fill_ratio";
const REFUSING: &str = "jobmesh_edge_refusing_work";
/// The label of requests for no route: their paths are of any number.
const NO_ROUTE: &str = "none";

/// Gives each measurement its unit and help.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, "Requests that were answered, by route, method and status.");
    describe_histogram!(DURATIONS, Unit::Seconds, "How long until an answer began, by route.");
    describe_gauge!(
        FILL,
        "How full a stream is, from 0 to 1. New work is refused before it is full."
    );
    describe_gauge!(REFUSING, "1 while new work is refused, because a stream is nearly full.");
}

/// The routes of the API, by which requests are counted. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Routes(Arc<matchit::Router<String>>);

impl Routes {
    /// Those with these templates, such as `/api/projects/{projectId}`.
    pub fn new(templates: impl Iterator<Item = String>) -> Self {
        let mut routes = matchit::Router::new();
        for template in templates {
            // The document is that of the router, which has the same templates.
            let _ = routes.insert(template.clone(), template);
        }
        Self(Arc::new(routes))
    }

    /// The template of a path.
    pub fn of(&self, path: &str) -> String {
        self.0.at(path).map_or_else(|_| NO_ROUTE.to_owned(), |found| found.value.clone())
    }
}

/// Measures a request.
pub(crate) async fn measure(
    State(routes): State<Routes>,
    request: Request,
    next: Next,
) -> Response {
    let route = routes.of(request.uri().path());
    let method = method_of(&request).to_owned();
    let started = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_str().to_owned();
    histogram!(DURATIONS, "route" => route.clone()).record(started.elapsed());
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status).increment(1);
    response
}

/// The method of a request, if it is one that an endpoint could have: clients can make up any.
pub(crate) fn method_of(request: &Request) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = request.method().as_str();
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}

/// Records how full a stream is.
pub(crate) fn stream_fill(stream: &'static str, fill: f64) {
    gauge!(FILL, "stream" => stream).set(fill);
}

/// Records whether new work is refused.
pub(crate) fn refusing_work(is_refusing: bool) {
    gauge!(REFUSING).set(f64::from(u8::from(is_refusing)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_never_by_path() {
        let templates = ["/api/projects", "/api/projects/{projectId}"];
        let routes = Routes::new(templates.into_iter().map(str::to_owned));
        assert_eq!(routes.of("/api/projects/one"), "/api/projects/{projectId}");
        assert_eq!(routes.of("/api/projects"), "/api/projects");
        assert_eq!(routes.of("/api/projects/one/two"), NO_ROUTE);
        assert_eq!(routes.of("/"), NO_ROUTE);
    }
}
