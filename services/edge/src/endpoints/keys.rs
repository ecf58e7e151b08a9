//! GET, POST and DELETE /api/keys: API keys, for admins.

use axum::extract::{Path, State, rejection::PathRejection};
use job::{Id, time::Millis};
use nats::api_keys::{self, Change, KeyRecord, NewKey, Scope};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{
    app::App,
    audit::AuditNote,
    body::{self, Body, NoQuery},
    error::Error,
    ids,
    keys::Access,
    openapi::QuestionError,
    view::Time,
};

/// The longest name of a key, in bytes, and the most projects of one.
const NAME_BYTES_MAX: usize = 128;
const PROJECTS_MAX: usize = 1_000;
/// The most keys of a mesh.
const KEYS_MAX: usize = 10_000;
/// How long the old secret of a rotated key is accepted, by default and at most, in ms.
const OLD_FOR_MS: Millis = 24 * 3_600_000;
const OLD_FOR_MS_MAX: Millis = 30 * 24 * 3_600_000;
/// The longest life of a key that expires, in ms.
const EXPIRES_IN_MS_MAX: Millis = 3_650 * 24 * 3_600_000;

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = NewKey)]
struct Request {
    /// A name for people.
    #[schema(value_type = String, required = true, min_length = 1, max_length = 128)]
    name: Option<String>,
    /// The projects that it may use; all if absent.
    #[schema(min_items = 1, max_items = 1_000)]
    projects: Option<Vec<String>>,
    #[schema(value_type = Scope, required = true)]
    scope: Option<String>,
    /// Hides data, results and progress of jobs.
    metadata_only: Option<bool>,
    /// When it expires, such as 90d, 12h or 30m; never if absent.
    #[schema(pattern = "^[1-9][0-9]{0,6}[dhms]$")]
    expires_in: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = KeyRotation)]
struct Rotation {
    /// How long the secret before is still accepted, such as 24h, which is the default, or 0s.
    #[schema(pattern = "^(0|[1-9][0-9]{0,6})[dhms]$")]
    keep_old_for: Option<String>,
}

/// An API key without its secret.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Key)]
struct View {
    id: String,
    name: String,
    /// The projects that it may use; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    projects: Option<Vec<Id>>,
    scope: Scope,
    metadata_only: bool,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
    /// Until when the secret before the last rotation is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_secret_until: Option<Time>,
    /// To the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Time>,
}

impl View {
    fn new(record: KeyRecord, used: Option<Millis>) -> Self {
        let now = service::now_ms();
        let until = record.secrets.iter().filter_map(|secret| secret.until).max();
        Self {
            id: record.id,
            name: record.name,
            projects: record.projects,
            scope: record.scope,
            metadata_only: record.metadata_only,
            created_at: Time(record.created_at),
            expires_at: record.expires_at.map(Time),
            old_secret_until: until.filter(|until| now < *until).map(Time),
            last_used_at: used.map(Time),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = KeyList)]
pub(crate) struct Listed {
    success: bool,
    keys: Vec<View>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = KeyAnswer)]
pub(crate) struct Response {
    success: bool,
    key: View,
    /// The key as clients send it. It is shown here alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = KeyRevoked)]
pub(crate) struct Revoked {
    success: bool,
    message: String,
}

/// Lists the API keys.
#[utoipa::path(
    get, path = "/api/keys", tag = "operators",
    responses((status = 200, description = "As it is now.", body = Listed), QuestionError),
)]
pub(crate) async fn list_keys(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
) -> Answer<Listed> {
    access.project_or_all(None)?;
    let keys = app.keys.store().list().await.map_err(failed)?;
    let keys = keys.into_iter().map(|(record, used)| View::new(record, used)).collect();
    ok(Listed { success: true, keys })
}

/// Makes an API key. From the first one on, each request needs a key.
#[utoipa::path(
    post, path = "/api/keys", tag = "operators", request_body = Request,
    responses((status = 200, description = "Done.", body = Response), Error),
)]
pub(crate) async fn create_key(
    State(app): State<App>,
    access: Access,
    note: AuditNote,
    _: NoQuery,
    Body(body): Body,
) -> Answer<Response> {
    access.project_or_all(None)?;
    let request: Request = body::read(&body)?;
    let now = service::now_ms();
    let new = new_key(request, now)?;
    let count = app.keys.count();
    let is_first = count == 0 && !app.keys.is_enforced();
    let is_admin = new.scope == Scope::Admin && new.projects.is_none() && new.expires_at.is_none();
    if is_first && !is_admin {
        return Err(Error::invalid(
            "scope of the first key must be admin, without projects and expiresIn: from then on only an \
             admin can make keys",
        ));
    }
    if count >= KEYS_MAX {
        return Err(Error::too_large(format!("there are {count} API keys: revoke some first")));
    }
    let (change, secret) = app.keys.store().create(new, now).await.map_err(failed)?;
    let record = in_force(&app, change)?;
    note.target(format!("key {}", record.id));
    tracing::info!(key.id = record.id, key.name = record.name, "API key created");
    let secret = Some(secret.reveal().to_owned());
    ok(Response { success: true, key: View::new(record, None), secret })
}

/// Revokes an API key: requests with it are refused from now on, and its streams end.
#[utoipa::path(
    delete, path = "/api/keys/{keyId}", tag = "operators", params(("keyId" = String, Path)),
    responses((status = 200, description = "Done.", body = Revoked), Error),
)]
pub(crate) async fn revoke_key(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Revoked> {
    access.project_or_all(None)?;
    let id = key_id(id)?;
    app.keys.store().revoke(&id).await.map_err(failed)?;
    app.keys.apply(Change::Revoked(id.clone()));
    tracing::info!(key.id = id, "API key revoked");
    ok(Revoked { success: true, message: format!("revoked API key {id}") })
}

/// Gives an API key another secret. The one before is accepted for a while, so that clients can change
/// it without a refused request.
#[utoipa::path(
    post, path = "/api/keys/{keyId}/rotate", tag = "operators", params(("keyId" = String, Path)), request_body = Rotation,
    responses((status = 200, description = "Done.", body = Response), Error),
)]
pub(crate) async fn rotate_key(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
    Body(body): Body,
) -> Answer<Response> {
    access.project_or_all(None)?;
    let request: Rotation = body::read(&body)?;
    let keep = request.keep_old_for.as_deref();
    let keep_ms = keep.map_or(Ok(OLD_FOR_MS), |text| time("keepOldFor", text, OLD_FOR_MS_MAX))?;
    let old_until = service::now_ms() + keep_ms;
    let rotated = app.keys.store().rotate(&key_id(id)?, old_until).await;
    let (change, secret) = rotated.map_err(failed)?;
    let record = in_force(&app, change)?;
    tracing::info!(key.id = record.id, key.name = record.name, "API key rotated");
    let secret = Some(secret.reveal().to_owned());
    ok(Response { success: true, key: View::new(record, None), secret })
}

/// Applies a change at this edge, so that its next request meets it; the others follow the bucket.
fn in_force(app: &App, change: Change) -> Result<KeyRecord, Error> {
    app.keys.apply(change.clone());
    match change {
        Change::Set(record, _) => Ok(record),
        Change::Revoked(_) => Err(Error::internal("a key was revoked instead of stored")),
    }
}

fn key_id(id: Result<Path<String>, PathRejection>) -> Result<String, Error> {
    let Path(id) = id.map_err(|_| Error::invalid("keyId in the path must be UTF-8"))?;
    Ok(id)
}

fn new_key(request: Request, now: Millis) -> Result<NewKey, Error> {
    let name = request.name.ok_or_else(|| Error::missing("name"))?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let text = format!("name must be 1 to {NAME_BYTES_MAX} bytes without control characters");
        return Err(Error::invalid(text));
    }
    let scope = request.scope.ok_or_else(|| Error::missing("scope"))?;
    let found = Scope::ALL.into_iter().find(|known| known.name() == scope);
    let names = Scope::ALL.map(Scope::name).join(", ");
    let scope = found.ok_or_else(|| Error::invalid(format!("scope must be one of {names}")))?;
    let projects = request.projects.map(projects).transpose()?;
    if scope == Scope::Admin && projects.is_some() {
        return Err(Error::invalid("projects must be absent for scope admin, which is for all"));
    }
    let metadata_only = request.metadata_only.unwrap_or(false);
    if metadata_only && scope != Scope::Read {
        return Err(Error::invalid("metadataOnly is for scope read only"));
    }
    let expires_in = request.expires_in.as_deref();
    let expires_in =
        expires_in.map(|text| time("expiresIn", text, EXPIRES_IN_MS_MAX)).transpose()?;
    if expires_in == Some(0) {
        return Err(Error::invalid("expiresIn must be longer than 0"));
    }
    let expires_at = expires_in.map(|ms| now + ms);
    Ok(NewKey { name, projects, scope, metadata_only, expires_at })
}

fn projects(listed: Vec<String>) -> Result<Vec<Id>, Error> {
    if listed.is_empty() {
        return Err(Error::invalid("projects must not be empty; leave it out for all projects"));
    }
    if listed.len() > PROJECTS_MAX {
        let n = listed.len();
        let text = format!("projects has {n} items, at most {PROJECTS_MAX} are allowed");
        return Err(Error::invalid(text));
    }
    let ids = listed.iter().enumerate();
    ids.map(|(index, project)| ids::id(&format!("projects[{index}]"), project)).collect()
}

/// A time such as 90d, in ms.
fn time(field: &str, text: &str, ms_max: Millis) -> Result<Millis, Error> {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let parsed = units.into_iter().find_map(|(unit, ms): (_, Millis)| {
        let number = text.strip_suffix(unit)?;
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        number.parse::<Millis>().ok().filter(|_| is_number)?.checked_mul(ms)
    });
    parsed.filter(|ms| *ms <= ms_max).ok_or_else(|| {
        let days = ms_max / 86_400_000;
        Error::invalid(format!("{field} must be a time such as 90d, 12h or 30m, at most {days}d"))
    })
}

fn failed(error: api_keys::Error) -> Error {
    match error {
        api_keys::Error::NotFound(_) => Error::key_not_found(error.to_string()),
        api_keys::Error::Conflict(_) | api_keys::Error::Unreadable { .. } => {
            Error::key_conflict(error.to_string())
        }
        api_keys::Error::Nats { .. } => {
            tracing::warn!(error = %error, "API keys not reached");
            Error::unanswered()
        }
        api_keys::Error::Random(_) => Error::internal("no random bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, ms) in [("90d", 7_776_000_000), ("12h", 43_200_000), ("0s", 0)] {
            assert_eq!(time("t", text, Millis::MAX).ok(), Some(ms), "{text}");
        }
        for odd in ["", "d", "-1d", "+1d", "1", "1w", "1.5h", "99999999999999999d", "1 d"] {
            assert!(time("t", odd, Millis::MAX).is_err(), "{odd}");
        }
        assert!(time("t", "2d", 86_400_000).is_err());
    }
}
