//! API keys: which requests are allowed. The keys of the bucket are followed, so that a change takes
//! effect at every edge at once.

mod access;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use job::time::Millis;
use nats::{
    Broker,
    api_keys::{Change, KeyRecord, KeyStore, KeyText, Scope},
};
use tokio_util::sync::CancellationToken;

pub(crate) use access::Access;

use crate::error::Error;

/// How long to wait before the keys are read again after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How often the last use of a key is recorded at most, in ms.
const NOTE_USE_EVERY_MS: Millis = 60_000;
/// Paths without a key: probes, and the documentation of the API.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/readyz", "/openapi.json", "/docs"];

/// The keys that this edge knows. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Inner>);

struct Inner {
    store: KeyStore,
    /// True if each request needs a key even if there is none.
    is_required: bool,
    known: RwLock<HashMap<String, Key>>,
    /// When the use of each key was recorded.
    noted: Mutex<HashMap<String, Millis>>,
}

/// A key that is accepted.
#[derive(Clone)]
struct Key {
    record: Arc<KeyRecord>,
    /// Cancelled when the key is revoked or changed.
    ended: CancellationToken,
}

impl Keys {
    /// Reads the keys, and follows their changes until `stop` is cancelled. `None` if that comes before
    /// the keys could be read.
    ///
    /// # Errors
    /// If their bucket cannot be opened.
    pub async fn start(
        broker: &Broker,
        is_required: bool,
        stop: CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let store = KeyStore::open(broker).await?;
        let (known, noted) = (RwLock::default(), Mutex::default());
        let keys = Self(Arc::new(Inner { store, is_required, known, noted }));
        // No request is answered before all keys are known.
        let load = || keys.load();
        if service::retry_until(&stop, PAUSE, "API keys not read", load).await.is_none() {
            return Ok(None);
        }
        let following = keys.clone();
        tokio::spawn(async move {
            let follow = || following.follow();
            service::retry_until(&stop, PAUSE, "API keys not followed", follow).await;
        });
        Ok(Some(keys))
    }

    /// Reads all keys.
    async fn load(&self) -> Result<(), nats::api_keys::Error> {
        let keys = self.store().list().await?;
        let ids: Vec<String> = keys.iter().map(|(record, _)| record.id.clone()).collect();
        let known: Vec<String> = self.known().keys().cloned().collect();
        keys.into_iter().for_each(|(record, _)| self.apply(Change::Set(record)));
        // One that was revoked while the changes were not followed.
        let revoked = known.into_iter().filter(|id| !ids.contains(id));
        revoked.for_each(|id| self.apply(Change::Revoked(id)));
        Ok(())
    }

    /// Applies changes until they cannot be followed.
    async fn follow(&self) -> Result<(), nats::api_keys::Error> {
        let mut changes = self.store().watch().await?;
        self.load().await?;
        while let Some(change) = changes.next().await {
            self.apply(change?);
        }
        let why = "the watch of the bucket ended".to_owned();
        Err(nats::api_keys::Error::Nats { step: "followed", why })
    }

    fn apply(&self, change: Change) {
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = match change {
            Change::Set(record) => {
                let is_known = known.get(&record.id).is_some_and(|key| *key.record == record);
                if is_known {
                    return;
                }
                let key = Key { record: Arc::new(record), ended: CancellationToken::new() };
                known.insert(key.record.id.clone(), key)
            }
            Change::Revoked(id) => known.remove(&id),
        };
        if let Some(before) = before {
            before.ended.cancel();
        }
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.known().len()
    }

    /// The bucket.
    pub fn store(&self) -> &KeyStore {
        &self.0.store
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Key>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request may do.
    fn access(&self, headers: &HeaderMap, now: Millis) -> Result<Access, Error> {
        let known = self.known();
        if known.is_empty() && !self.0.is_required {
            return Ok(Access::open());
        }
        let Some(header) = headers.get(AUTHORIZATION) else { return Err(Error::no_key()) };
        let text = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        let key = text.and_then(|text| KeyText::parse(text.trim()));
        let key = key.ok_or_else(Error::malformed_key)?;
        let found = known.get(key.id).filter(|known| known.record.accepts(&key, now));
        let Key { record, ended } = found.cloned().ok_or_else(Error::unknown_key)?;
        drop(known);
        self.note_use(&record.id, now);
        Ok(Access::of_key(record, ended))
    }

    /// Records the use of a key, now and then.
    fn note_use(&self, id: &str, now: Millis) {
        let mut noted = self.0.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.get(id).is_some_and(|at| now - at < NOTE_USE_EVERY_MS) {
            return;
        }
        noted.insert(id.to_owned(), now);
        let (store, id) = (self.store().clone(), id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = store.note_used(&id, now).await {
                tracing::debug!(key.id = id, %error, "use of an API key not recorded");
            }
        });
    }
}

/// Refuses requests without a key that allows them, and lets the others know what they may see.
pub(crate) async fn guard(State(keys): State<Keys>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_open = OPEN_PATHS.iter().any(|open| {
        path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    let access = if is_open {
        Ok(Access::open())
    } else {
        let access = keys.access(request.headers(), service::now_ms());
        let needed = scope_of(request.method(), path);
        access.and_then(|access| access.allows(needed).map(|()| access))
    };
    match access {
        Ok(access) => {
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// The scope that a request needs. A path that is not named here needs one that fits its method.
fn scope_of(method: &Method, path: &str) -> Scope {
    match path {
        "/api/queue/enqueue" | "/api/queue/redo" => Scope::Enqueue,
        _ if path == "/api/keys" || path.starts_with("/api/keys/") => Scope::Admin,
        _ if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) => Scope::Read,
        _ => Scope::Manage,
    }
}
