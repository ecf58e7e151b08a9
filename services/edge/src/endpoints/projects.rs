//! GET and PUT /api/projects/{projectId}: limits, weight, pause, attempts, retention, handler,
//! webhook.

use std::ops::RangeInclusive;

use axum::extract::{Path, State, rejection::PathRejection};
use job::{
    Backoff, Id, Patch, Settings, Status,
    command::Project,
    reply::Reply,
    webhook::{Deliveries, Webhook},
};
use mesh::{
    ask::{AskProject, ProjectAnswer},
    names::{self, Verb},
};
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

use super::{ATTEMPTS_MAX, Answer, DURABLE, accepted, backoff, ok};
use crate::{
    app::App,
    body::{self, Body, NoQuery},
    error::Error,
    ids,
    openapi::QuestionError,
    submit::Submitted,
};

/// The most turns of a project where others have one.
const WEIGHT_MAX: u64 = 100;
/// The longest time that an ended job may be kept, in seconds: ten years.
const RETENTION_S_MAX: u64 = 10 * 366 * 24 * 3_600;
/// The largest options of a handler, in bytes.
const OPTIONS_BYTES_MAX: usize = 64 * 1024;
/// The longest URL of a webhook, in bytes.
const URL_BYTES_MAX: usize = 2_048;
/// How long the key in the secret of a webhook may be, in bytes: what Standard Webhooks asks for.
const SECRET_BYTES: RangeInclusive<usize> = 24..=64;
/// The highest of the other limits.
const LIMIT_MAX: u64 = i32::MAX as u64;
/// The highest limit of tokens: the largest number that all readers of JSON hold exactly.
const TOKENS_MAX: u64 = (1 << 53) - 1;
/// The longest name of a handler, in bytes.
const HANDLER_BYTES_MAX: usize = 64;

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
}

/// Shows the settings of a project.
#[utoipa::path(
    get, path = "/api/projects/{projectId}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128)),
    responses((status = 200, description = "As it is now.", body = Response), QuestionError),
)]
pub(crate) async fn get_project(
    State(app): State<App>,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let project = project_id(id)?;
    let project = Some(view(&app, project).await?);
    ok(Response { success: true, project, message: None })
}

/// Changes the settings of a project: a field that is absent stays, one that is null goes back
/// to the configuration's.
#[utoipa::path(
    put, path = "/api/projects/{projectId}", tag = "projects", params(("projectId" = String, Path, min_length = 1, max_length = 128)), request_body = Patch,
    responses((status = 200, description = "Done.", body = Response), (status = 202, description = "Durable, and not confirmed yet.", body = Response), Error),
)]
pub(crate) async fn put_project(
    State(app): State<App>,
    _: NoQuery,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Answer<Response> {
    let project = project_id(id)?;
    let change: Patch = body::read(&body::bytes(body)?)?;
    check(&change)?;
    let ask = Project { project: project.clone(), change };
    match app.submitter.submit(Verb::Project, ask).await? {
        Submitted::Durable => {
            let message = Some(DURABLE.to_owned());
            accepted(Response { success: true, project: None, message })
        }
        Submitted::Folded(Reply::ProjectSet(_)) => {
            let project = Some(view(&app, project).await?);
            ok(Response { success: true, project, message: None })
        }
        Submitted::Folded(_) => Err(Error::internal("project was answered with another reply")),
    }
}

fn project_id(id: Result<Path<String>, PathRejection>) -> Result<Id, Error> {
    let Path(id) = id.map_err(|_| Error::invalid("projectId in the path must be UTF-8"))?;
    ids::id("projectId", &id)
}

async fn view(app: &App, project: Id) -> Result<View, Error> {
    let question = AskProject { project: project.clone() };
    let answer = app.ask_state(names::ASK_PROJECT, &question).await;
    let answer: ProjectAnswer = answer.map_err(|error| {
        tracing::warn!(error = %error, "settings without state");
        Error::away("state", "state does not answer, and only it knows the settings")
    })?;
    let usage = Usage {
        running_jobs: answer.usage.running,
        starts_in_last_minute: answer.usage.starts,
        tokens_in_last_minute: answer.usage.tokens,
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
    let within = |field: &str, value: Option<Option<u32>>, low: u64, high: u64| match value {
        Some(Some(value)) if !(low..=high).contains(&u64::from(value)) => {
            Err(Error::invalid(format!("{field} must be an integer from {low} to {high}")))
        }
        _ => Ok(()),
    };
    if change.tokens_per_minute.flatten().is_some_and(|tokens| tokens > TOKENS_MAX) {
        return Err(Error::invalid(format!(
            "tokensPerMinute must be an integer from 0 to {TOKENS_MAX}"
        )));
    }
    within("maxConcurrency", change.max_concurrency, 0, LIMIT_MAX)?;
    within("requestsPerMinute", change.requests_per_minute, 0, LIMIT_MAX)?;
    within("weight", change.weight, 1, WEIGHT_MAX)?;
    within("maxAttempts", change.max_attempts, 1, ATTEMPTS_MAX)?;
    within("retention", change.retention, 1, RETENTION_S_MAX)?;
    if let Some(Some(retry)) = &change.retry {
        backoff("retry", retry)?;
    }
    if let Some(Some(options)) = &change.options {
        let options = options.get();
        if !options.starts_with('{') || options.len() > OPTIONS_BYTES_MAX {
            return Err(Error::invalid(format!(
                "options must be an object of at most {OPTIONS_BYTES_MAX} bytes"
            )));
        }
    }
    if let Some(Some(handler)) = &change.handler {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if handler.is_empty() || handler.len() > HANDLER_BYTES_MAX || !handler.chars().all(plain) {
            return Err(Error::invalid(format!(
                "handler must be 1 to {HANDLER_BYTES_MAX} characters of A-Z, a-z, 0-9, - and _"
            )));
        }
    }
    if let Some(Some(webhook)) = &change.webhook {
        check_webhook(webhook)?;
    }
    Ok(())
}

fn check_webhook(webhook: &Webhook) -> Result<(), Error> {
    let url: Option<Url> = webhook.url.parse().ok().filter(|_| webhook.url.len() <= URL_BYTES_MAX);
    let reachable = |url: &Url| {
        let plain = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && plain
    };
    if !url.as_ref().is_some_and(reachable) {
        return Err(Error::invalid(format!(
            "webhook.url must be an http or https URL of at most {URL_BYTES_MAX} bytes, without a user"
        )));
    }
    if !webhook.key().is_some_and(|key| SECRET_BYTES.contains(&key.len())) {
        let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
        return Err(Error::invalid(format!(
            "webhook.secret must be whsec_ and the base64 of {least} to {most} random bytes"
        )));
    }
    let ends =
        |events: &Vec<Status>| !events.is_empty() && events.iter().all(|it| it.is_terminal());
    if webhook.events.as_ref().is_some_and(|events| !ends(events)) {
        return Err(Error::invalid(
            "webhook.events must name some of completed, failed and canceled; leave it out for all",
        ));
    }
    if webhook.max_attempts.is_some_and(|n| !(1..=ATTEMPTS_MAX).contains(&u64::from(n))) {
        return Err(Error::invalid(format!(
            "webhook.maxAttempts must be an integer from 1 to {ATTEMPTS_MAX}"
        )));
    }
    webhook.retry.iter().try_for_each(|retry| backoff("webhook.retry", retry))
}
