//! What the endpoints that submit commands share: reading the request, and answering with the reply.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use job::{Id, reply::Reply, trace::TraceContext};
use nats::names::Verb;
use serde::{Deserialize, Serialize};

use super::Answer;
use crate::{
    app::App,
    audit::AuditNote,
    body::{self, Body, NoQuery},
    error::Error,
    ids::{self, Key},
    keys::Access,
    submit::Submitted,
};

/// The message of a durable command that is not processed yet.
pub(super) const DURABLE: &str =
    "accepted and durable; not confirmed as queued yet, ask for its status";

/// A request without parameters whose body is a command.
pub(crate) struct CommandRequest {
    access: Access,
    note: AuditNote,
    headers: HeaderMap,
    trace: Option<TraceContext>,
    body: Bytes,
}

impl FromRequest<App> for CommandRequest {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        NoQuery::from_request_parts(&mut parts, app).await?;
        let access = Access::from_request_parts(&mut parts, app).await?;
        let note = AuditNote::from_request_parts(&mut parts, app).await?;
        let headers = parts.headers.clone();
        let trace = parts.extensions.get().copied();
        let Body(body) = Body::from_request(Request::from_parts(parts, body), app).await?;
        Ok(Self { access, note, headers, trace, body })
    }
}

/// A body that names its project.
pub(super) trait NamesProject {
    /// The field `projectId`.
    fn project_id(&self) -> Option<&str>;
}

impl CommandRequest {
    /// Reads the body, the project that it names, and the idempotency key in the headers. The key
    /// counts for this project and this verb.
    pub(super) fn read<'a, T: Deserialize<'a> + NamesProject>(
        &'a self,
        verb: Verb,
    ) -> Result<(T, Id, Option<Key>), Error> {
        let request: T = self.body()?;
        let project = request.project_id().ok_or_else(|| Error::missing("projectId"))?;
        let project = ids::id("projectId", project)?;
        self.access.project(&project)?;
        self.note.project(&project);
        let key = self.idempotency(verb, &project)?;
        Ok((request, project, key))
    }

    /// Reads the body.
    pub(super) fn body<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        body::read(&self.body)
    }

    /// The idempotency key in the headers. It counts for this verb and these projects.
    pub(super) fn idempotency(&self, verb: Verb, projects: &str) -> Result<Option<Key>, Error> {
        Key::read(&self.headers, verb.name(), projects, &self.body)
    }

    /// The span of the request, if it is traced.
    pub(super) fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// What the request may see and do.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// What the audit log records of the request.
    pub(super) fn note(&self) -> &AuditNote {
        &self.note
    }

    /// Notes what the command changes, for the audit log.
    pub(super) fn note_target(&self, target: impl Into<String>) {
        self.note.target(target.into());
    }
}

/// Submits a command and answers 200 with what `respond` makes of the reply, or 202 with what it
/// makes of none: the command is durable then and not processed yet. `respond` returns `None` for a
/// reply of another verb.
pub(super) async fn submit<C: Serialize, T: Serialize>(
    app: &App,
    verb: Verb,
    command: C,
    respond: impl FnOnce(Option<Reply>) -> Option<T>,
) -> Answer<T> {
    let (status, reply) = match app.submitter.submit(verb, command).await? {
        Submitted::Durable => (StatusCode::ACCEPTED, None),
        Submitted::Processed(reply) => (StatusCode::OK, Some(reply)),
    };
    let body = respond(reply);
    let other_reply =
        || Error::internal(&format!("{} was answered with another reply", verb.name()));
    Ok((status, axum::Json(body.ok_or_else(other_reply)?)))
}
