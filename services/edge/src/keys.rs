//! API keys: which requests are allowed. The keys of the bucket are followed, so that a change takes
//! effect at every edge at once.

mod access;
mod ticket;
mod waiting;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use job::time::Millis;
use nats::{
    Broker,
    api_keys::{Change, Error as KeyError, KeyRecord, KeyStore, KeyText},
};
use service::BackgroundTask;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use access::Access;
pub(crate) use ticket::PARAMETER as TICKET_PARAMETER;
pub(crate) use waiting::WaitingRequests;

use crate::error::Error;
use access::Current;
use ticket::Ticket;

/// Follows changes of API keys.
pub(crate) const FOLLOWING: BackgroundTask = BackgroundTask::new("keys");
/// How long to wait before the keys are read again after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How often all keys are read again, in case a change was missed.
const RELOAD_EVERY: Duration = Duration::from_secs(30);
/// How often the last use of a key is recorded at most, in ms.
const RECORD_USE_EVERY_MS: Millis = 60_000;
/// Paths without a key: probes, the documentation of the API, and the console, which has no data of its own.
const OPEN_PATHS: [&str; 6] =
    ["/livez", "/healthz", "/readyz", "/openapi.json", "/docs", "/assets"];
/// The authentication scheme.
const BEARER: &str = "bearer ";

/// The keys that this edge knows. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Inner>);

struct Inner {
    store: KeyStore,
    /// True once each request needs a key. It stays so: a key that cannot be read or was revoked must not
    /// open the API.
    is_enforced: AtomicBool,
    /// Cancelled at that moment.
    enforced: CancellationToken,
    /// The keys by id.
    known: RwLock<HashMap<String, Key>>,
    /// When the use of each key was recorded.
    recorded: Mutex<HashMap<String, Millis>>,
}

/// A key, followed by the requests that use it.
struct Key {
    revision: u64,
    current: watch::Sender<Option<Arc<KeyRecord>>>,
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
        let keys = Self(Arc::new(Inner {
            store: KeyStore::open(broker).await?,
            is_enforced: AtomicBool::new(false),
            enforced: CancellationToken::new(),
            known: RwLock::default(),
            recorded: Mutex::default(),
        }));
        if is_required {
            keys.enforce();
        }
        // No request is answered before all keys are known.
        let load = || keys.load();
        if service::retry_until(&stop, PAUSE, "API keys not read", load).await.is_none() {
            return Ok(None);
        }
        let following = keys.clone();
        tokio::spawn(async move {
            let follow = || async {
                let ended = following.follow().await;
                FOLLOWING.note(&ended);
                ended
            };
            service::retry_until(&stop, PAUSE, "API keys not followed", follow).await;
        });
        Ok(Some(keys))
    }

    /// Reads all keys.
    async fn load(&self) -> Result<(), KeyError> {
        if self.store().is_enforced().await? {
            self.enforce();
        }
        // Before the keys are read: one that is created meanwhile must not count as revoked.
        let mut missing: HashSet<String> = {
            let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
            known.keys().cloned().collect()
        };
        let records = self.store().records().await?;
        for (record, _) in &records {
            missing.remove(&record.id);
        }
        // They were revoked while the changes were not followed.
        missing.into_iter().for_each(|id| self.apply(Change::Revoked(id)));
        for (record, revision) in records {
            self.apply(Change::Set(record, revision));
        }
        Ok(())
    }

    /// Applies changes until they cannot be followed.
    async fn follow(&self) -> Result<(), KeyError> {
        let mut changes = self.store().watch().await?;
        let mut reload = tokio::time::interval(RELOAD_EVERY);
        loop {
            tokio::select! {
                _ = reload.tick() => {
                    self.load().await?;
                    FOLLOWING.succeeded();
                }
                change = changes.next() => match change {
                    Some(change) => self.apply(change?),
                    None => {
                        let why = "the watch of the bucket ended".to_owned();
                        return Err(KeyError::Nats { step: "followed", why });
                    }
                },
            }
        }
    }

    /// Applies a change, unless a later one is known: a replica of the bucket may be behind.
    pub fn apply(&self, change: Change) {
        // A key that was created or revoked, whichever it is: from then on keys are needed.
        self.enforce();
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Set(record, revision) => {
                let key = known
                    .entry(record.id.clone())
                    .or_insert_with(|| Key { revision: 0, current: watch::channel(None).0 });
                if key.revision < revision {
                    key.revision = revision;
                    key.current.send_replace(Some(Arc::new(record)));
                }
            }
            // Requests that use it see that its sender is dropped.
            Change::Revoked(id) => {
                known.remove(&id);
                self.recorded().remove(&id);
            }
        }
    }

    fn enforce(&self) {
        if !self.0.is_enforced.swap(true, Ordering::AcqRel) {
            tracing::info!("each request needs an API key");
            self.0.enforced.cancel();
        }
    }

    /// True if each request needs a key.
    pub fn is_enforced(&self) -> bool {
        self.0.is_enforced.load(Ordering::Acquire)
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The bucket.
    pub fn store(&self) -> &KeyStore {
        &self.0.store
    }

    fn recorded(&self) -> std::sync::MutexGuard<'_, HashMap<String, Millis>> {
        self.0.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request may do.
    fn access(&self, request: &Request, now: Millis) -> Result<Access, Error> {
        if !self.is_enforced() {
            return Ok(Access::open(self.0.enforced.clone()));
        }
        let ticket = ticket::text_in(request.method(), request.uri());
        match ticket.filter(|_| !request.headers().contains_key(AUTHORIZATION)) {
            Some(ticket) => self.access_of_ticket(ticket, now),
            None => self.access_of_key(request.headers(), now),
        }
    }

    /// What the ticket of a request allows: the same as its key.
    fn access_of_ticket(&self, text: &str, now: Millis) -> Result<Access, Error> {
        let ticket = Ticket::parse(text).ok_or_else(Error::unknown_ticket)?;
        let (record, current) = self.current(ticket.key).ok_or_else(Error::unknown_ticket)?;
        let mut secrets = record.secrets.iter().map(|secret| secret.sha256.as_str());
        let secret = secrets.find(|secret| {
            ticket.is_of(secret, now) && record.accepted_until(secret, now).is_some()
        });
        let secret = secret.ok_or_else(Error::unknown_ticket)?.into();
        Ok(Access::of_key(record, secret, current))
    }

    /// The record of a key, now and as it changes.
    fn current(&self, id: &str) -> Option<(Arc<KeyRecord>, Current)> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let current = known.get(id)?.current.subscribe();
        drop(known);
        let record = current.borrow().clone()?;
        Some((record, current))
    }

    /// What the API key of a request allows.
    fn access_of_key(&self, headers: &HeaderMap, now: Millis) -> Result<Access, Error> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let header = given.next().ok_or_else(Error::no_key)?;
        let text = header.to_str().ok().filter(|_| given.next().is_none());
        let text = text.and_then(|text| {
            let (scheme, key) = text.split_at_checked(BEARER.len())?;
            scheme.eq_ignore_ascii_case(BEARER).then(|| key.trim())
        });
        let key = text.and_then(KeyText::parse).ok_or_else(Error::malformed_key)?;
        let (record, current) = self.current(key.id).ok_or_else(Error::unknown_key)?;
        let secret = key.secret_hash();
        record.accepted_until(&secret, now).ok_or_else(Error::unknown_key)?;
        self.record_use(&record.id, now);
        Ok(Access::of_key(record, secret.into(), current))
    }

    /// Records the use of a key, at most once a minute.
    fn record_use(&self, id: &str, now: Millis) {
        let mut recorded = self.recorded();
        if recorded.get(id).is_some_and(|at| now - at < RECORD_USE_EVERY_MS) {
            return;
        }
        recorded.insert(id.to_owned(), now);
        let (store, id) = (self.store().clone(), id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = store.record_use(&id, now).await {
                tracing::debug!(key.id = id, %error, "use of an API key not recorded");
            }
        });
    }
}

/// Whether a text is a ticket that was made with the secret of this hash, and is accepted at `now`.
#[cfg(fuzzing)]
pub(crate) fn is_ticket_of(text: &str, secret_hash: &str, now: Millis) -> bool {
    Ticket::parse(text).is_some_and(|ticket| ticket.is_of(secret_hash, now))
}

/// Refuses requests without an accepted key, and attaches the [`Access`] of the others.
pub(crate) async fn guard(State(keys): State<Keys>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_below = |open: &str| {
        path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let is_open = path == "/" || OPEN_PATHS.iter().any(|open| is_below(open));
    let access = if is_open {
        Ok(Access::open(CancellationToken::new()))
    } else {
        keys.access(&request, service::now_ms())
    };
    match access {
        Ok(access) => {
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}
