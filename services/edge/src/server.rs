//! HTTP connections: accepted, counted, served, and closed when a client neither asks nor goes away.

mod activity;
mod connection;
mod limits;
mod tls;
mod watched;

use std::{io, time::Duration};

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use tls::Tls;

use crate::{Config, proxies::TrustedProxies};
use connection::Peer;
use limits::{Admission, Connections};

/// How long a connection may be open without a request.
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// The same for a connection beyond a limit.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
/// How long requests in progress may take to end when the service stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait after a connection could not be accepted, as when there are too many open files.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The router of a connection.
pub(crate) struct Routers {
    /// The API.
    pub served: Router,
    /// There are too many connections.
    pub too_many: Router,
    /// There are too many of the client's address.
    pub too_many_of_address: Router,
}

/// Serves until `stop` is cancelled, then lets requests in progress end.
pub(crate) async fn serve(
    listener: TcpListener,
    routers: Routers,
    tls: Option<Tls>,
    config: &Config,
    stop: CancellationToken,
) {
    limits::raise_open_files(config.max_connections);
    let counted = Connections::new(config.max_connections, config.max_connections_per_address);
    let proxies = TrustedProxies::new(&config.trusted_proxies);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip();
                let of = (!proxies.has(address)).then_some(address);
                let Some(permit) = counted.admit(of) else { continue };
                // Each write is a complete answer or a complete event.
                stream.set_nodelay(true).ok();
                let router = match permit.admission {
                    Admission::Served => routers.served.clone(),
                    Admission::TooMany => routers.too_many.clone(),
                    Admission::TooManyOfAddress => routers.too_many_of_address.clone(),
                };
                let is_served = permit.admission == Admission::Served;
                let acceptor = tls.as_ref().map(|tls| tls.acceptor(is_served));
                let stop = stop.clone();
                let idle_within = if is_served { IDLE_WITHIN } else { REFUSED_WITHIN };
                let peer = Peer { address, proxies: proxies.clone(), idle_within };
                connections.spawn(async move {
                    connection::serve(stream, acceptor, peer, router, stop).await;
                    drop(permit);
                });
            }
            // The client has disconnected.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "connection not accepted, trying again");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_WITHIN, connections.wait()).await.is_err() {
        tracing::warn!(count = connections.len(), "requests took too long to end and are cut off");
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
