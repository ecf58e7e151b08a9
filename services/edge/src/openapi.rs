//! The OpenAPI document: what is the same for all endpoints. The rest stands at each of them.

use std::collections::BTreeMap;

use utoipa::{
    IntoParams, IntoResponses, Modify, OpenApi, PartialSchema, ToSchema,
    openapi::{
        ContentBuilder, RefOr, ResponseBuilder,
        response::Response,
        schema::{ObjectBuilder, Schema, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::error::{Envelope, Error};

/// What the document says of the API as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Jobmesh",
        description = "A job queue for batch work: jobs are enqueued, run, retried, canceled, followed and counted. Fields that are not known are refused. Every error has the same envelope; its `code` is for programs, its `error` for people.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Envelope)),
    modifiers(&ApiKey),
    security((), ("apiKey" = [])),
    tags(
        (name = "queue", description = "Jobs: enqueued, changed, read, counted."),
        (name = "projects", description = "Limits, handlers, webhooks and schedules of projects."),
        (name = "operators", description = "For those who run it."),
    )
)]
pub(crate) struct Document;

/// The API key in the document: optional, because a mesh without keys needs none.
struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let bearer = bearer.description(Some("An API key, needed once there is one."));
        let scheme = SecurityScheme::Http(bearer.build());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("apiKey", scheme);
    }
}

/// The statuses that an error may have, and what each means.
const ERRORS: [(&str, &str); 14] = [
    ("400", "The request is not what it must be; the error names the field."),
    ("401", "There are API keys, and the request has none that is accepted."),
    ("403", "The API key may not do this, or a web page of another site made the request."),
    (
        "404",
        "There is no such job, batch, schedule, operation, API key or endpoint, or the API key is not for the project.",
    ),
    ("405", "The endpoint does not take the method."),
    ("408", "The body did not come in time."),
    ("409", "The job or schedule is in no state for it; the error says why."),
    ("413", "Too much at once; the error names the limit."),
    ("415", "The body is compressed, or a web page did not send it as JSON."),
    ("421", "The request is for a name that is not one of this edge."),
    (
        "422",
        "The Idempotency-Key came with another request before, or a dry run has too many jobs to look at.",
    ),
    (
        "429",
        "The project is at its limit, or the client's address has too many connections: send it again after Retry-After.",
    ),
    ("500", "The edge failed; report it with the X-Request-Id."),
    ("503", "Something behind the edge is away or full: send it again after Retry-After."),
];

/// Which of them an answer to a mere question may have.
const OF_QUESTIONS: [&str; 9] = ["400", "401", "403", "404", "405", "421", "429", "500", "503"];

impl IntoResponses for Error {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let envelope = RefOr::Ref(utoipa::openapi::Ref::from_schema_name(Envelope::name()));
        let responses = ERRORS.map(|(status, description)| {
            let content = ContentBuilder::new().schema(Some(envelope.clone())).build();
            let response = ResponseBuilder::new().description(description);
            let response = response.content("application/json", content).build();
            (status.to_owned(), RefOr::T(response))
        });
        responses.into()
    }
}

/// The errors of endpoints that change nothing.
pub(crate) struct QuestionError;

impl IntoResponses for QuestionError {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut responses = Error::responses();
        responses.retain(|status, _| OF_QUESTIONS.contains(&status.as_str()));
        responses
    }
}

/// The header that makes a repeat of a request harmless: it gets the first one's answer.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for a header in the document")]
pub(crate) struct IdempotencyKey {
    /// Makes a repeat of the request harmless: it gets the first one's answer.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[ -~]+$")]
    key: Option<String>,
}

/// The types of jobs that clients ask for.
#[derive(ToSchema)]
#[schema(as = JobType, rename_all = "snake_case")]
#[expect(dead_code, reason = "it stands for text in schemas")]
pub(crate) enum ClientJobType {
    /// A whole batch.
    ProcessBatch,
    /// Some columns of one row of a batch again.
    ProcessRedo,
}

/// A JSON value of any kind.
pub(crate) struct Anything;

impl PartialSchema for Anything {
    fn schema() -> RefOr<Schema> {
        let any = utoipa::openapi::schema::SchemaType::AnyValue;
        RefOr::T(ObjectBuilder::new().schema_type(any).build().into())
    }
}

impl ToSchema for Anything {}

/// A time as RFC 3339.
pub(crate) struct When;

impl PartialSchema for When {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let format = utoipa::openapi::schema::KnownFormat::DateTime;
        let format = utoipa::openapi::SchemaFormat::KnownFormat(format);
        RefOr::T(text.format(Some(format)).build().into())
    }
}

impl ToSchema for When {}
