//! GET /api/access: what the request's API key allows.

use axum::extract::State;
use job::Id;
use nats::api_keys::Scope;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Answer, ok};
use crate::{app::App, body::NoQuery, keys::Access, openapi::QuestionError};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AccessAnswer)]
pub(crate) struct Response {
    success: bool,
    /// False while there are no API keys: then every request may do everything.
    key_required: bool,
    access: View,
}

/// What the request may do.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Access)]
struct View {
    scope: Scope,
    /// The API key; absent while none is required.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The projects that the key is for; absent if it is for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    projects: Option<Vec<Id>>,
    /// True if data, results and progress are hidden.
    metadata_only: bool,
}

/// Shows what the API key of the request allows.
#[utoipa::path(
    get, path = "/api/access", tag = "operators",
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn get_access(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
) -> Answer<Response> {
    let key = access.key_record();
    let access = View {
        scope: key.map_or(Scope::Admin, |key| key.scope),
        key_id: key.map(|key| key.id.clone()),
        name: key.map(|key| key.name.clone()),
        projects: key.and_then(|key| key.projects.clone()),
        metadata_only: access.is_metadata_only(),
    };
    ok(Response { success: true, key_required: app.keys.is_enforced(), access })
}
