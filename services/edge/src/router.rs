//! Every route, grouped by audience.

use ::traces::Tracer;
use axum::{
    Router,
    body::Bytes,
    http::{
        HeaderValue, Method, Uri,
        header::{CONNECTION, CONTENT_TYPE},
    },
    middleware,
    response::Response,
    routing::get,
};
use nats::query::{FailureView, ProjectOrder};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    app::App,
    audit, authorize,
    browser::{self, Browsers},
    endpoints::{
        access, analytics, analytics::AnalyticsFormat, audit as audit_api, cancel, console,
        deliveries, deliveries::DeliveryStatus, enqueue, events, failures, failures::FailureOrder,
        health, jobs, keys as keys_api, live, metrics, operations, processors, project_list,
        projects, redo, result, retry, scale, schedules, stats, status, tasks, tickets, update,
    },
    error::Error,
    keys,
    measurements::{self, Routes},
    openapi::Document,
    request_id,
    server::Routers,
    traces,
};

/// The path of the API document.
const OPENAPI: &str = "/openapi.json";

/// The schemas of parameters: a route adds those of its body and its answers only.
#[derive(OpenApi)]
#[openapi(components(schemas(
    ProjectOrder,
    AnalyticsFormat,
    FailureOrder,
    FailureView,
    DeliveryStatus
)))]
struct ParameterSchemas;

/// What is recorded of requests.
pub(crate) struct Observed {
    /// True if they are measured.
    pub is_measured: bool,
    /// Takes their spans.
    pub tracer: Option<Tracer>,
}

/// The endpoints, with their document.
fn endpoints() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi().merge_from(ParameterSchemas::openapi()))
        .routes(routes!(enqueue::enqueue))
        .routes(routes!(redo::redo))
        .routes(routes!(cancel::cancel))
        .routes(routes!(retry::retry))
        .routes(routes!(operations::start_operation, operations::list_operations))
        .routes(routes!(operations::get_operation))
        .routes(routes!(operations::abort_operation))
        .routes(routes!(status::status))
        .routes(routes!(update::update_job))
        .routes(routes!(result::result))
        .routes(routes!(jobs::list_jobs))
        .routes(routes!(jobs::get_batch))
        .routes(routes!(stats::stats))
        .routes(routes!(scale::scale))
        .routes(routes!(live::live))
        .routes(routes!(metrics::metrics))
        .routes(routes!(events::stream))
        .routes(routes!(analytics::analytics))
        .routes(routes!(failures::list_failures))
        .routes(routes!(failures::mark::mark_failure))
        .routes(routes!(project_list::list_projects))
        .routes(routes!(projects::get_project, projects::put_project))
        .routes(routes!(deliveries::list_deliveries))
        .routes(routes!(deliveries::retry_deliveries))
        .routes(routes!(schedules::list_schedules))
        .routes(routes!(
            schedules::get_schedule,
            schedules::put_schedule,
            schedules::delete_schedule
        ))
        .routes(routes!(access::get_access))
        .routes(routes!(tickets::create_ticket))
        .routes(routes!(keys_api::list_keys, keys_api::create_key))
        .routes(routes!(keys_api::revoke_key))
        .routes(routes!(keys_api::rotate_key))
        .routes(routes!(processors::list_processors))
        .routes(routes!(tasks::list_tasks))
        .routes(routes!(audit_api::list_changes))
        .routes(routes!(health::healthz))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
}

/// The OpenAPI document of the edge, as JSON.
pub fn openapi() -> String {
    let document = endpoints().into_openapi();
    document.to_pretty_json().expect("a document is JSON")
}

/// The routes of each kind of connection.
pub(crate) fn routers(app: &App, browsers: &Browsers, observed: &Observed) -> Routers {
    let refused = |error: fn() -> Error| {
        let alive = get(async || "ok");
        let refused = Router::new().route("/livez", alive.clone()).route("/healthz", alive);
        let refused = refused.fallback(async move || error());
        // One answer, whatever it is, makes room for others.
        protected(refused.layer(middleware::map_response(close_connection)), browsers.clone())
    };
    Routers {
        served: router(app.clone(), browsers.clone(), observed),
        too_many: refused(Error::too_many_connections),
        too_many_of_address: refused(Error::too_many_connections_of_address),
    }
}

async fn close_connection(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Adds what all answers have: the request's id, and headers that protect pages.
fn protected(router: Router, browsers: Browsers) -> Router {
    router
        .layer(middleware::from_fn_with_state(browsers, browser::guard))
        .layer(middleware::from_fn(request_id::give))
}

/// The routes of the API.
fn router(app: App, browsers: Browsers, observed: &Observed) -> Router {
    let (router, description) = endpoints().split_for_parts();
    let keys = app.keys.clone();
    // A handler is cloned for each request: it must not hold the document itself.
    let document = Bytes::from(openapi());
    let document = get(async move || ([(CONTENT_TYPE, "application/json")], document.clone()));
    // By default the page has a stranger's server look at the document.
    let docs = utoipa_swagger_ui::Config::from(OPENAPI).validator_url("none");
    let router = router
        .route(OPENAPI, document)
        .route("/", get(console::page))
        .route("/assets/{file}", get(console::asset))
        .merge(SwaggerUi::new("/docs").config(docs))
        .fallback(async |uri: Uri| Error::no_endpoint(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Error::method(method.as_str(), uri.path())
        })
        .with_state(app.clone());
    // Around all routes at once: a layer of each route is cloned for each request, with all that
    // is inside.
    let router = Router::new()
        .fallback_service(router)
        .layer(middleware::from_fn(authorize::authorize))
        .layer(middleware::from_fn_with_state(app, audit::record))
        .layer(middleware::from_fn_with_state(keys, keys::guard));
    let mut router = protected(router, browsers);
    let routes = Routes::new(description.paths.paths.into_keys());
    if observed.is_measured {
        let routes = routes.clone();
        router = router.layer(middleware::from_fn_with_state(routes, measurements::measure));
    }
    if let Some(tracer) = observed.tracer.clone() {
        router = router.layer(middleware::from_fn_with_state((tracer, routes), traces::trace));
    }
    router
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_reference_of_the_document_resolves() {
        let document: serde_json::Value =
            serde_json::from_str(&super::openapi()).expect("the document is JSON");
        let text = document.to_string();
        let references = text.split("\"$ref\":\"#").skip(1);
        for reference in references.filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference} is missing");
        }
    }

    /// `JOBMESH_BLESS=1 cargo test -p jobmesh-edge` writes it again, for review and commit.
    #[test]
    fn the_document_in_the_repository_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let now = super::openapi() + "\n";
        if std::env::var_os("JOBMESH_BLESS").is_some() {
            std::fs::write(path, &now).expect("docs can be written");
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == now,
            "docs/openapi.json does not match the code: JOBMESH_BLESS=1 writes it again"
        );
    }
}
