//! The one error envelope, and the table of what may go wrong.

use std::time::Duration;

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use job::{bounds::truncate, reply::Code};
use nats::api_keys::Scope;
use serde::Serialize;
use utoipa::ToSchema;

/// An error, as the client sees it.
#[derive(Debug)]
pub(crate) struct Error {
    status: StatusCode,
    code: &'static str,
    text: String,
    retry_after_s: Option<u32>,
}

/// What every error looks like.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct Envelope {
    success: bool,
    /// For people: what was wrong, and what to do.
    error: String,
    /// For programs.
    code: &'static str,
}

impl Error {
    fn new(status: StatusCode, code: &'static str, text: impl Into<String>) -> Self {
        Self { status, code, text: text.into(), retry_after_s: None }
    }

    /// The body is no JSON object at all.
    pub fn malformed(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_json", text)
    }

    /// A field is not what it must be, or is not known.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_field", text)
    }

    /// A field that must be there is not.
    pub fn missing(field: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "missing_field", format!("{field} is required"))
    }

    /// A field that must be there in this case is not.
    pub fn missing_because(field: &str, why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "missing_field", format!("{field} is required: {why}"))
    }

    /// Too much of something.
    pub fn too_large(text: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
    }

    /// Whether it is about too much of something.
    pub fn is_too_large(&self) -> bool {
        self.status == StatusCode::PAYLOAD_TOO_LARGE
    }

    /// The body is in a form that is not read.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", text)
    }

    /// There are more connections than this edge serves.
    pub fn too_many_connections() -> Self {
        let text = "this server has too many connections; try again later";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { retry_after_s: Some(5), ..Self::new(status, "too_many_connections", text) }
    }

    /// There are more connections of one address than this edge serves.
    pub fn too_many_connections_of_address() -> Self {
        let text =
            "your address has too many connections; close some, or use each for several requests";
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { retry_after_s: Some(5), ..Self::new(status, "too_many_connections", text) }
    }

    /// A key or a project has as many waiting requests as one may have.
    pub fn too_many_waiting(of: &str, max: usize) -> Self {
        let text = format!(
            "{max} requests of {of} wait, or are event streams: close some, or follow a whole \
             project on one stream"
        );
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { retry_after_s: Some(5), ..Self::new(status, "too_many_waiting", text) }
    }

    /// The client does not send what it promised.
    pub fn slow(within: Duration) -> Self {
        let text = format!("the rest of the body did not come within {} s", within.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", text)
    }

    /// The request has no API key.
    pub fn no_key() -> Self {
        let text = "an API key is needed: send it as Authorization: Bearer jm_…";
        Self::new(StatusCode::UNAUTHORIZED, "key_missing", text)
    }

    /// The request has a text that is no API key.
    pub fn malformed_key() -> Self {
        let text = "the API key is malformed: it is a text of 54 characters that begins with jm_, behind Bearer";
        Self::new(StatusCode::UNAUTHORIZED, "key_malformed", text)
    }

    /// The API key is not accepted: unknown, revoked or expired.
    pub fn unknown_key() -> Self {
        let text = "the API key is unknown, revoked or expired";
        Self::new(StatusCode::UNAUTHORIZED, "key_not_accepted", text)
    }

    /// The ticket of an event stream is not accepted.
    pub fn unknown_ticket() -> Self {
        let text = "the ticket is malformed or expired, or its API key is not accepted any more: \
                    make another by POST /api/tickets";
        Self::new(StatusCode::UNAUTHORIZED, "ticket_not_accepted", text)
    }

    /// The API key may not do this.
    pub fn scope(own: Scope, needed: Scope) -> Self {
        let (own, needed) = (own.name(), needed.name());
        Self::forbidden(format!("the API key has scope {own}, and this needs {needed}"))
    }

    /// Settings that only an admin may change.
    pub fn fields_for_admins(own: Scope, fields: &[&str]) -> Self {
        let (own, fields) = (own.name(), fields.join(", "));
        Self::forbidden(format!("the API key has scope {own}, and only admin may set {fields}"))
    }

    /// The API key may not see this.
    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", text)
    }

    /// The API key is not for this project, whether there is one or not.
    pub fn project_not_found(project: &str) -> Self {
        let text = format!("the API key has no access to a project {project:?}");
        Self::new(StatusCode::NOT_FOUND, "project_not_found", text)
    }

    /// No such API key.
    pub fn key_not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "key_not_found", text)
    }

    /// Two requests changed an API key at the same time.
    pub fn key_conflict(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "key_conflict", text)
    }

    /// A page sends something else than JSON.
    pub fn content_type() -> Self {
        let text = "web pages must send a body with Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", text)
    }

    /// The request is for a name that is not one of this edge.
    pub fn host_not_allowed(host: &str) -> Self {
        let text = format!(
            "{host:?} is not a name of this server: use its address or localhost, or allow the name with --allow-host"
        );
        Self::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", truncate(&text, 500))
    }

    /// A page of another site makes a request.
    pub fn cross_origin(origin: &str) -> Self {
        let text = format!(
            "a web page of another site ({origin:?}) may not use this API unless --allow-origin names the site"
        );
        Self::new(StatusCode::FORBIDDEN, "cross_origin", truncate(&text, 500))
    }

    /// No such job.
    pub fn job_not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "job_not_found", text)
    }

    /// No job of such a batch.
    pub fn batch_not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "batch_not_found", text)
    }

    /// The job has no result, or its result has expired.
    pub fn result_not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "result_not_found", text)
    }

    /// There is no such operation, or it concerns projects that the API key is not for.
    pub fn operation_not_found(id: uuid::Uuid) -> Self {
        Self::new(StatusCode::NOT_FOUND, "operation_not_found", format!("no operation {id}"))
    }

    /// A dry run has looked at as many jobs as it may.
    pub fn dry_run_too_long(within: Duration) -> Self {
        let text = format!(
            "the dry run has not looked at all jobs within {} s; name a project, or select fewer jobs",
            within.as_secs()
        );
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "dry_run_too_long", text)
    }

    /// No such schedule.
    pub fn schedule_not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "schedule_not_found", text)
    }

    /// As many error groups are marked as can be.
    pub fn too_many_marks(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "too_many_marks", text)
    }

    /// The job is past its retention.
    pub fn archived(id: job::JobId) -> Self {
        let text = format!("job {id} is archived: its data is past retention, enqueue it again");
        Self::new(StatusCode::CONFLICT, "archived", text)
    }

    /// No such endpoint.
    pub fn no_endpoint(path: &str) -> Self {
        let text = format!("there is no endpoint {path}; /docs shows those that there are");
        Self::new(StatusCode::NOT_FOUND, "no_such_endpoint", text)
    }

    /// The endpoint does not know the method.
    pub fn method(method: &str, path: &str) -> Self {
        let text = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
    }

    /// The broker cannot confirm: nothing may be assumed.
    pub fn unconfirmed() -> Self {
        Self {
            retry_after_s: Some(1),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "broker_unavailable",
                "NATS did not confirm the request, which may be stored or not; send it again, with the same \
                 Idempotency-Key if it has one",
            )
        }
    }

    /// NATS does not answer a question.
    pub fn unanswered() -> Self {
        let text = "NATS does not answer; send the request again";
        Self {
            retry_after_s: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "broker_unavailable", text)
        }
    }

    /// COMMANDS is nearly full: what room is left belongs to outcomes.
    pub fn queue_full() -> Self {
        Self {
            retry_after_s: Some(5),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "queue_full",
                "the queue is full; retry later",
            )
        }
    }

    /// A service behind the edge does not answer.
    pub fn away(service: &'static str, text: impl Into<String>) -> Self {
        let code = if service == "state" { "state_unavailable" } else { "metrics_unavailable" };
        Self { retry_after_s: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, text) }
    }

    /// The same error with a time after which to send the request again, if one is known.
    pub fn retry_after(self, seconds: Option<u32>) -> Self {
        Self { retry_after_s: seconds.or(self.retry_after_s), ..self }
    }

    /// State refused the command.
    pub fn refused(code: Code, text: String) -> Self {
        let (status, code) = match code {
            Code::JobNotFound => (StatusCode::NOT_FOUND, "job_not_found"),
            Code::JobNotRetryable => (StatusCode::CONFLICT, "job_not_retryable"),
            Code::JobNotQueued => (StatusCode::CONFLICT, "job_not_queued"),
            Code::ExpiresBeforeRunAt => (StatusCode::UNPROCESSABLE_ENTITY, "expires_before_run_at"),
            Code::Superseded => (StatusCode::CONFLICT, "superseded"),
            Code::IdempotencyKeyReused => {
                (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused")
            }
            Code::OperationNotFound => (StatusCode::NOT_FOUND, "operation_not_found"),
            Code::ScheduleNotFound => (StatusCode::NOT_FOUND, "schedule_not_found"),
            Code::TooManySchedules => (StatusCode::CONFLICT, "too_many_schedules"),
            Code::SettingsFull => (StatusCode::CONFLICT, "settings_full"),
            Code::LargerThanLimit => (StatusCode::UNPROCESSABLE_ENTITY, "larger_than_limit"),
            Code::ProjectFull => {
                let refused = Self::new(StatusCode::TOO_MANY_REQUESTS, "project_full", text);
                return Self { retry_after_s: Some(5), ..refused };
            }
            Code::TooManyOperations => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let refused = Self::new(status, "too_many_operations", text);
                return Self { retry_after_s: Some(1), ..refused };
            }
            Code::SettingsMalformed | Code::ScheduleMalformed => {
                (StatusCode::BAD_REQUEST, "invalid_field")
            }
            Code::Unknown => (StatusCode::CONFLICT, "refused"),
            Code::Expired => return Self::unconfirmed(),
            Code::Malformed => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self::new(status, code, text)
    }

    /// Something that cannot happen did. The client gets an id of the request, the log the rest.
    pub fn internal(what: &str) -> Self {
        tracing::error!(what, "internal error");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the edge failed; see its log")
    }

    /// True if the client learns that there is no such job.
    pub fn is_job_not_found(&self) -> bool {
        self.code == "job_not_found"
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = Envelope { success: false, error: self.text, code: self.code };
        let mut response = (self.status, Json(body)).into_response();
        let leaves_body = [
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ];
        if leaves_body.contains(&self.status) {
            // The rest of the body is not read, so the connection cannot be reused.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
