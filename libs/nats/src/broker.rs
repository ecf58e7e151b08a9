//! The connection to NATS, as every service has it.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions, Event, connection::State, jetstream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    access::{Access, AccessError, Login, Tls},
    servers::{CONNECT_WITHIN, Servers, Watch},
};

/// How often the client looks whether the broker still answers; two misses close the connection.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// The default time that the client waits for an answer of the broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may come after the connection was replaced: what waited in the client's queue
/// goes out then.
const LATE_ANSWER: Duration = Duration::from_millis(250);

/// How long to wait before the next attempt to connect, and after the login was refused.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// How long a flush may take before the process stops without it.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// A connection to NATS and its JetStream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Core NATS.
    pub client: Client,
    /// JetStream.
    pub js: jetstream::Context,
    connects: watch::Receiver<u64>,
    pub(crate) servers: Arc<Servers>,
    /// Ends the watch of the servers with the last clone.
    _watch: Option<Arc<DropGuard>>,
}

/// The broker could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or the login cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No server could be connected to.
    #[error("could not connect to NATS at {servers}")]
    Connect {
        /// The addresses of the servers.
        servers: String,
        /// Why not.
        #[source]
        source: async_nats::ConnectError,
    },
}

/// Whether NATS answered, and refuses the login.
fn is_refused(error: &async_nats::ConnectError) -> bool {
    use async_nats::ConnectErrorKind::{Authentication, AuthorizationViolation};
    matches!(error.kind(), Authentication | AuthorizationViolation)
}

impl Broker {
    /// Connects to the broker at `url` as `name`; see [`connect_with`](Self::connect_with).
    ///
    /// # Errors
    /// If the URL cannot be used, or the first connection cannot be made.
    pub async fn connect(url: &str, name: &str) -> Result<Self, Error> {
        Self::connect_with(&Access::new(url, Login::None, Tls::default())?, name).await
    }

    /// Connects as `name`, and again whenever the connection is lost.
    ///
    /// # Errors
    /// If the login cannot be used, or the first connection cannot be made.
    pub async fn connect_with(access: &Access, name: &str) -> Result<Self, Error> {
        let (connected, connects) = watch::channel(0u64);
        let servers = Arc::<Servers>::default();
        let (chosen, noted) = (servers.clone(), servers.clone());
        let options = match access.servers().len() {
            1 => ConnectOptions::new(),
            _ => ConnectOptions::new().connection_timeout(CONNECT_WITHIN),
        };
        let options = options
            .name(name)
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis(50 * u64::try_from(attempt.min(20)).unwrap_or(20))
            })
            .reconnect_to_server_callback(move |_, _| std::future::ready(chosen.take_next()))
            .event_callback(move |event| {
                let (connected, servers) = (connected.clone(), noted.clone());
                async move {
                    match event {
                        Event::LameDuckMode => servers.note_lame_duck(),
                        Event::Connected => connected.send_modify(|count| *count += 1),
                        Event::Disconnected if servers.take_leaving() => {}
                        Event::Disconnected => tracing::warn!("connection to NATS lost"),
                        Event::SlowConsumer(sid) => tracing::warn!(sid, "messages were dropped"),
                        Event::ServerError(error) => {
                            tracing::error!(%error, "NATS reports an error");
                        }
                        _ => {}
                    }
                }
            });
        let connecting = access.apply(options)?.connect(access.servers());
        let connected = connecting.await;
        let client =
            connected.map_err(|source| Error::Connect { servers: access.to_string(), source })?;
        let mut js = jetstream::new(client.clone());
        js.set_timeout(REQUEST_TIMEOUT);
        Ok(Self { client, js, connects, servers, _watch: None })
    }

    /// Watches which server the client is connected to, as long as the broker or a clone of it is there.
    fn watching(self, access: &Access, name: &str, streams: Vec<String>) -> Self {
        let watch = Watch {
            client: self.client.clone(),
            servers: self.servers.clone(),
            access: access.clone(),
            name: name.to_owned(),
            streams,
            connects: self.connects(),
        };
        let stop = CancellationToken::new();
        tokio::spawn(watch.run(stop.clone()));
        Self { _watch: Some(Arc::new(stop.drop_guard())), ..self }
    }

    /// Connects, and tries again until it works or `stop` is done. From then on the client leaves a server that does
    /// not reach the leaders of `streams`, and goes to the nearest one that does.
    ///
    /// # Errors
    /// If the login cannot be used.
    pub async fn connect_until(
        access: &Access,
        name: &str,
        streams: Vec<String>,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, AccessError> {
        loop {
            let mut pause = CONNECT_PAUSE;
            let connecting = Self::connect_with(access, name);
            let connected = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                connected = connecting => connected,
            };
            match connected {
                Ok(broker) => return Ok(Some(broker.watching(access, name, streams))),
                Err(Error::Access(error)) => return Err(error),
                Err(Error::Connect { servers, source }) if is_refused(&source) => {
                    tracing::error!(
                        error = %source,
                        servers,
                        login = %access.login(),
                        "NATS refuses the login, trying again: is it in its configuration, with this secret?"
                    );
                    pause = REFUSED_PAUSE;
                }
                Err(Error::Connect { servers, source }) => {
                    tracing::warn!(error = %source, servers, "NATS is not reachable, trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether the server is one of a cluster. Some clusters do not tell their clients the addresses of their servers.
    pub fn is_in_cluster(&self) -> bool {
        let info = self.client.server_info();
        info.cluster.is_some() || !info.connect_urls.is_empty()
    }

    /// Sends what waits to be sent. Gives up if the broker is away or does not take it in time: the next
    /// replica or a redelivery sends it again.
    pub async fn flush(&self) {
        if self.is_connected() {
            let _ = tokio::time::timeout(FLUSH_WITHIN, self.client.flush()).await;
        }
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the connection stands, but not longer than `patience`; returns whether it does.
    pub async fn until_connected(&self, patience: Duration) -> bool {
        let mut connects = self.connects();
        connects.mark_unchanged();
        if !self.is_connected() {
            let _ = tokio::time::timeout(patience, connects.changed()).await;
        }
        self.is_connected()
    }

    /// Completes when the answer to a request that is sent after this call can no longer arrive:
    /// the connection was replaced since.
    pub fn answer_lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut connects = self.connects();
        connects.mark_unchanged();
        async move {
            if connects.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LATE_ANSWER).await;
        }
    }

    /// Runs a read, and again if its answer was lost with a connection.
    pub async fn reread<T, F: Future<Output = T>>(&self, read: impl Fn() -> F) -> T {
        loop {
            let lost = self.answer_lost();
            tokio::select! {
                biased;
                answer = read() => return answer,
                () = lost => {}
            }
        }
    }

    /// The id of the server process that the client is connected to. A server that the client itself has chosen instead of
    /// another one counts as that one: nothing was lost with it.
    pub fn incarnation(&self) -> String {
        self.servers.first_of(self.client.server_info().server_id)
    }

    /// Counts the connections made so far; changes with each reconnect.
    pub fn connects(&self) -> watch::Receiver<u64> {
        self.connects.clone()
    }
}
