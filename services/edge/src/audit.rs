//! Records each request that changes something, other than enqueues: its API key and address, its project and target,
//! its reason and the status of its answer.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use job::Id;
use nats::audit::AuditRecord;
use percent_encoding::percent_decode_str;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::{app::App, error::Error, keys::Access, proxies::ClientAddress, request_id::RequestId};

/// Why a change is made, in the words of the requester.
static REASON: HeaderName = HeaderName::from_static("jobmesh-reason");
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 500;
/// How long an answer waits for its record to be stored.
const STORED_WITHIN: Duration = Duration::from_millis(500);
/// How long the broker may be away before a record is lost, and the pause between two attempts to store it.
const STORE_WITHIN: Duration = Duration::from_secs(60);
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How much of a path is recorded, in bytes.
const PATH_BYTES_MAX: usize = 1_024;

/// What a handler knows of a change and the path does not say. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditNote(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    project: Option<Id>,
    target: Option<String>,
    reason: Option<String>,
    changes_nothing: bool,
}

impl AuditNote {
    /// Notes which project the change is about.
    pub fn project(&self, project: &Id) {
        self.lock().project = Some(project.clone());
    }

    /// Notes what is changed.
    pub fn target(&self, target: String) {
        self.lock().target = Some(target);
    }

    /// Notes the reason that the body gives.
    pub fn reason(&self, reason: Option<&str>) {
        self.lock().reason = reason.map(str::to_owned);
    }

    /// Notes that the request is a question, and is not recorded.
    pub fn changes_nothing(&self) {
        self.lock().changes_nothing = true;
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Sync> FromRequestParts<S> for AuditNote {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        // A request that is not recorded has none.
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// Records a change once it is answered.
pub(crate) async fn record(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if !is_recorded(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    let mut record = match begin(&request) {
        Ok(record) => record,
        Err(error) => return error.into_response(),
    };
    let note = AuditNote::default();
    request.extensions_mut().insert(note.clone());
    // A client that disconnects takes nothing back, and a handler that panics may have changed something.
    let recorded = async move {
        let answered = tokio::spawn(next.run(request).in_current_span()).await;
        let failed = |_| Error::internal("a request ended early").into_response();
        let response = answered.unwrap_or_else(failed);
        let Noted { project, target, reason, changes_nothing } = std::mem::take(&mut *note.lock());
        let is_recorded = is_change(response.status()) && !changes_nothing;
        let is_refusal = response.status() == StatusCode::FORBIDDEN;
        if is_recorded && (!is_refusal || app.refusals.admit(record.key_id.as_deref())) {
            record.at = service::now_ms();
            record.status = response.status().as_u16();
            // What the path names is certain; the body of a refused request is not checked.
            record.project = record.project.or(project.map(|id| id.to_string()));
            record.target = target;
            record.reason = record.reason.or(reason);
            let storing = tokio::spawn(store(app, record).in_current_span());
            // The answer does not wait for a broker that is away.
            let _ = tokio::time::timeout(STORED_WITHIN, storing).await;
        }
        response
    };
    let recorded = tokio::spawn(recorded.in_current_span()).await;
    recorded.unwrap_or_else(|_| Error::internal("a request ended early").into_response())
}

/// Stores a record, again if the broker does not answer.
async fn store(app: App, record: AuditRecord) {
    let never = CancellationToken::new();
    let attempt = || app.broker.store_audit_record(&record);
    let storing =
        service::retry_until(&never, STORE_PAUSE, "record of the audit log not stored", attempt);
    if tokio::time::timeout(STORE_WITHIN, storing).await.is_err() {
        tracing::error!(?record, "a change is missing in the audit log");
    }
}

/// True for a request that changes something, other than an enqueue: jobs are a record of that themselves. A ticket changes
/// nothing.
fn is_recorded(method: &Method, path: &str) -> bool {
    let is_question = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let is_no_change = matches!(path, "/api/queue/enqueue" | "/api/queue/redo" | "/api/tickets");
    path.starts_with("/api/") && !is_question && !is_no_change
}

/// True for an answer after which something may have changed, or that refuses a change that the API key does not allow.
fn is_change(status: StatusCode) -> bool {
    status.is_success() || status.is_server_error() || status == StatusCode::FORBIDDEN
}

fn begin(request: &Request) -> Result<AuditRecord, Error> {
    let extensions = request.extensions();
    let path = request.uri().path();
    let key = extensions.get::<Access>().and_then(Access::key_record);
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let address = extensions.get().map_or(unknown, |ClientAddress(address)| *address);
    Ok(AuditRecord {
        id: Uuid::now_v7(),
        at: 0,
        request_id: extensions.get().map(|RequestId(id)| id.clone()).unwrap_or_default(),
        key_id: key.map(|key| key.id.clone()),
        key_name: key.map(|key| key.name.clone()),
        address: address.to_string(),
        method: request.method().to_string(),
        path: job::bounds::truncate(path, PATH_BYTES_MAX),
        project: project_in(path),
        target: None,
        status: 0,
        reason: reason(request.headers())?,
    })
}

/// The project that a path names.
fn project_in(path: &str) -> Option<String> {
    let project = path.strip_prefix("/api/projects/")?.split('/').next()?;
    Some(percent_decode_str(project).decode_utf8().ok()?.into_owned())
}

fn reason(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get(&REASON) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).ok();
    let text = text.filter(|text| (1..=REASON_BYTES_MAX).contains(&text.len()));
    let invalid =
        || Error::invalid(format!("Jobmesh-Reason must be UTF-8 of 1 to {REASON_BYTES_MAX} bytes"));
    Ok(Some(text.ok_or_else(invalid)?.to_owned()))
}
