//! GET and PUT /api/projects/{projectId}: limits, weight, pause, attempts, retention, handler.

use axum::extract::{Path, State, rejection::PathRejection};
use job::{Id, Patch, Settings, command::Project, reply::Reply};
use mesh::{
    ask::{AskProject, ProjectAnswer},
    names::{self, Verb},
};
use serde::Serialize;

use super::{ATTEMPTS_MAX, Answer, DURABLE, accepted, backoff, ok};
use crate::{
    app::App,
    body::{self, Body},
    error::Error,
    ids,
    submit::Submitted,
};

/// The most turns of a project where others have one.
const WEIGHT_MAX: u64 = 100;
/// The longest time that an ended job may be kept, in seconds: ten years.
const RETENTION_S_MAX: u64 = 10 * 366 * 24 * 3_600;
/// The largest options of a handler, in bytes.
const OPTIONS_BYTES_MAX: usize = 64 * 1024;
/// The longest name of a handler, in bytes.
const HANDLER_BYTES_MAX: usize = 64;

#[derive(Serialize)]
pub(crate) struct Response {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<View>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The settings that hold, and what was used of them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    project_id: Id,
    #[serde(flatten)]
    settings: Settings,
    /// Shown also where the project is not paused.
    paused: bool,
    usage: Usage,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    running_jobs: u64,
    starts_in_last_minute: u64,
    tokens_in_last_minute: u64,
}

/// Shows the settings of a project.
pub(crate) async fn get_project(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Response> {
    let project = project_id(id)?;
    let project = Some(view(&app, project).await?);
    ok(Response { success: true, project, message: None })
}

/// Changes the settings of a project: a field that is absent stays, one that is null goes back
/// to the configuration's.
pub(crate) async fn put_project(
    State(app): State<App>,
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
    let settings = Settings { paused: false, ..answer.settings };
    Ok(View { project_id: project, settings, paused, usage })
}

fn check(change: &Patch) -> Result<(), Error> {
    let within = |field: &str, value: Option<Option<u32>>, low: u64, high: u64| match value {
        Some(Some(value)) if !(low..=high).contains(&u64::from(value)) => {
            Err(Error::invalid(format!("{field} must be an integer from {low} to {high}")))
        }
        _ => Ok(()),
    };
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
    Ok(())
}
