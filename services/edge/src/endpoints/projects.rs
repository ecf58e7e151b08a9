//! GET and PUT /api/projects/{projectId}: limits, weight, pause, attempts, retention, handler,
//! webhook.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use job::{
    Backoff, Id, Patch, Settings, Status, command::Project, delivery::Deliveries, reply::Reply,
};
use nats::{
    names::{self, Verb},
    query::{ProjectAnswer, ProjectQuery},
};
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

use super::{
    Answer,
    command::{self, DURABLE},
    ok,
};
use crate::{
    app::App,
    body::{self, Body, NoQuery},
    error::Error,
    ids,
    keys::Access,
    openapi::QuestionError,
};

#[derive(Serialize, ToSchema)]
#[schema(as = ProjectSettings)]
pub(crate) struct Response {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<View>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The settings that hold, and what was used of them.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Project)]
struct View {
    #[schema(value_type = String)]
    project_id: Id,
    #[serde(flatten)]
    settings: Settings,
    /// Shown also where the project is not paused.
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<WebhookView>,
    usage: Usage,
}

/// A webhook, without its secret.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = WebhookStatus)]
struct WebhookView {
    #[schema(value_type = String)]
    url: Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Status>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<Backoff>,
    deliveries: Deliveries,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProjectUsage)]
struct Usage {
    running_jobs: u64,
    starts_in_last_minute: u64,
    tokens_in_last_minute: u64,
    enqueued_in_last_minute: u64,
    /// Queued and running jobs.
    active_jobs: u64,
    /// Bytes of their data.
    active_bytes: u64,
    schedules: u64,
}

/// Shows the settings of a project.
#[utoipa::path(
    get, path = "/api/projects/{projectId}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128)),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn get_project(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let project = project_id(&access, id)?;
    let mut project = view(&app, project).await?;
    if access.is_metadata_only() {
        (project.settings.options, project.webhook) = (None, None);
    }
    ok(Response { success: true, project: Some(project), message: None })
}

/// Changes the settings of a project: a field that is absent stays, one that is null goes back
/// to the configuration's.
#[utoipa::path(
    put, path = "/api/projects/{projectId}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128)), request_body = Patch,
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn put_project(
    State(app): State<App>,
    access: Access,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
    Body(body): Body,
) -> Answer<Response> {
    let project = project_id(&access, id)?;
    let change: Patch = body::read(&body)?;
    let for_admins = change.admin_fields();
    if !for_admins.is_empty() {
        access.allows_to_set(&for_admins)?;
    }
    check(&change)?;
    let ask = Project { project: project.clone(), change };
    let respond = |reply| match reply {
        None => Some(Some(DURABLE.to_owned())),
        Some(Reply::ProjectSet(_)) => Some(None),
        Some(_) => None,
    };
    let (status, Json(message)) = command::submit(&app, Verb::Project, ask, respond).await?;
    let project = if message.is_none() { Some(view(&app, project).await?) } else { None };
    Ok((status, Json(Response { success: true, project, message })))
}

pub(super) fn project_id(
    access: &Access,
    id: Result<Path<String>, PathRejection>,
) -> Result<Id, Error> {
    let Path(id) = id.map_err(|_| Error::invalid("projectId in the path must be UTF-8"))?;
    let id = ids::id("projectId", &id)?;
    access.project(&id)?;
    Ok(id)
}

async fn view(app: &App, project: Id) -> Result<View, Error> {
    let question = ProjectQuery { project: project.clone() };
    let answer = app.ask_state(names::QUERY_PROJECT, &question).await;
    let answer: ProjectAnswer = answer.map_err(|error| {
        tracing::warn!(error = %error, "settings without state");
        Error::away("state", "state does not answer, and only it knows the settings")
    })?;
    let usage = Usage {
        running_jobs: answer.usage.running,
        starts_in_last_minute: answer.usage.starts,
        tokens_in_last_minute: answer.usage.tokens,
        enqueued_in_last_minute: answer.usage.enqueues,
        active_jobs: answer.usage.active,
        active_bytes: answer.usage.active_bytes,
        schedules: answer.usage.schedules,
    };
    let paused = answer.settings.paused;
    let mut settings = Settings { paused: false, ..answer.settings };
    let webhook = settings.webhook.take().map(|webhook| WebhookView {
        url: webhook.url,
        events: webhook.events,
        max_attempts: webhook.max_attempts,
        retry: webhook.retry,
        deliveries: answer.deliveries,
    });
    Ok(View { project_id: project, settings, paused, webhook, usage })
}

fn check(change: &Patch) -> Result<(), Error> {
    change.check().map_err(Error::invalid)?;
    let Some(Some(webhook)) = &change.webhook else { return Ok(()) };
    let reachable = |url: &Url| {
        let plain = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && plain
    };
    if !webhook.url.parse().is_ok_and(|url| reachable(&url)) {
        return Err(Error::invalid("webhook.url must be an http or https URL without a user"));
    }
    Ok(())
}
