//! HTTP connections: accepted, counted, served, and closed when a client neither asks nor goes away.

mod limits;
mod tls;

use std::{
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;

pub(crate) use tls::Tls;

use crate::{
    Config,
    proxies::{ClientAddress, TrustedProxies},
};
use limits::{Admission, Connections};

/// How long the head of a request may take from its first byte on.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may be open without a request.
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// The same for a connection beyond a limit.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
/// How long a client may take no bytes of an answer.
const TAKE_WITHIN: Duration = Duration::from_secs(60);
/// How often connections are checked for these.
const CHECK_EVERY: Duration = Duration::from_secs(5);
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
                let peer = Peer { address: peer.ip(), proxies: proxies.clone() };
                let of = (!proxies.has(peer.address)).then_some(peer.address);
                let Some(permit) = counted.admit(of) else { continue };
                // Each write is a complete answer or a complete event.
                stream.set_nodelay(true).ok();
                let router = match permit.admission {
                    Admission::Served => routers.served.clone(),
                    Admission::TooMany => routers.too_many.clone(),
                    Admission::TooManyOfAddress => routers.too_many_of_address.clone(),
                };
                let (stop, acceptor) = (stop.clone(), tls.as_ref().map(Tls::acceptor));
                let idle_within = match permit.admission {
                    Admission::Served => IDLE_WITHIN,
                    Admission::TooMany | Admission::TooManyOfAddress => REFUSED_WITHIN,
                };
                connections.spawn(async move {
                    match acceptor {
                        None => connection(stream, peer, router, idle_within, stop).await,
                        Some(acceptor) => {
                            // A handshake that fails or never ends is its client's affair.
                            let shaken = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
                            if let Ok(Ok(stream)) = shaken {
                                connection(stream, peer, router, idle_within, stop).await;
                            }
                        }
                    }
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

/// Where a connection comes from.
struct Peer {
    address: IpAddr,
    proxies: TrustedProxies,
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    peer: Peer,
    router: Router,
    idle_within: Duration,
    stop: CancellationToken,
) {
    let activity = Arc::new(Activity::default());
    let noted = activity.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        noted.enter(Phase::Request);
        let address = peer.proxies.client(peer.address, request.headers());
        request.extensions_mut().insert(ClientAddress(address));
        let (mut router, noted) = (router.clone(), noted.clone());
        async move {
            let answer = router.call(request.map(Body::new)).await;
            // The answer goes on until its body is dropped.
            let until_written = Until(noted);
            answer.map(|answer| {
                answer.map(|body| {
                    body.map_frame(move |frame| {
                        let _ = &until_written;
                        frame
                    })
                })
            })
        }
    });
    let io = TokioIo::new(Watched { stream, activity: activity.clone() });
    let mut served = pin!(http1::Builder::new().serve_connection(io, service));
    let mut check = tokio::time::interval(CHECK_EVERY);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            // How a connection ends is its client's affair.
            _ = served.as_mut() => return,
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                served.as_mut().graceful_shutdown();
            }
            _ = check.tick() => match activity.current() {
                _ if activity.is_stalled() => return,
                (Phase::Head, since) if since.elapsed() > HEAD_WITHIN => return,
                (Phase::Idle, since) if since.elapsed() > idle_within => {
                    served.as_mut().graceful_shutdown();
                }
                _ => {}
            },
        }
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of its head.
    Head,
    /// Its answer.
    Request,
}

/// The phase of a connection and since when, and since when its client takes no bytes.
struct Activity {
    phase: Mutex<(Phase, Instant)>,
    stalled: Mutex<Option<Instant>>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { phase: Mutex::new((Phase::Idle, Instant::now())), stalled: Mutex::new(None) }
    }
}

/// Makes a connection idle when it is dropped.
struct Until(Arc<Activity>);

impl Drop for Until {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}

impl Activity {
    fn enter(&self, phase: Phase) {
        *self.lock() = (phase, Instant::now());
    }

    fn current(&self) -> (Phase, Instant) {
        *self.lock()
    }

    /// Notes that bytes came.
    fn received(&self) {
        let mut current = self.lock();
        if current.0 == Phase::Idle {
            *current = (Phase::Head, Instant::now());
        }
    }

    /// Notes whether bytes were taken.
    fn sent(&self, poll: &Poll<io::Result<usize>>) {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        match poll {
            Poll::Pending => {
                stalled.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => *stalled = None,
        }
    }

    fn is_stalled(&self) -> bool {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.is_some_and(|since| since.elapsed() > TAKE_WITHIN)
    }

    fn lock(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that notes what it receives and sends.
struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.sent(&sent);
        sent
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.activity.sent(&sent);
        sent
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
