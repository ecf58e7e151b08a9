//! One connection, from its first byte until it is closed.

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::{
    activity::{Activity, AnswerBody, EndTask, Phase},
    tls,
    watched::{Notes, Watched},
};
use crate::proxies::{ClientAddress, TrustedProxies};

/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long the head of a request may take from its first byte on.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take no bytes of an answer.
const TAKE_WITHIN: Duration = Duration::from_secs(60);
/// How often connections are checked for these.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Requests of one connection of HTTP/2 at the same time.
const REQUESTS_MAX: u32 = 32;
/// The parts in which answers of HTTP/2 are given to the connection, which keeps up to three of each answer, in bytes.
const PART_BYTES_MAX: usize = 16 * 1024;

tokio::task_local! {
    /// What ends the task of a request of HTTP/2, and its answer with it.
    static TASK: EndTask;
}

/// Runs each request of HTTP/2 in a task that can be ended alone.
#[derive(Clone, Copy, Debug)]
struct RequestExecutor;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for RequestExecutor {
    fn execute(&self, request: F) {
        let handle = EndTask::default();
        let task = tokio::spawn(TASK.scope(handle.clone(), request));
        // It is set once: each task has a cell of its own.
        let _ = handle.set(task.abort_handle());
    }
}

/// The version of HTTP of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// 1.0 and 1.1.
    Http1,
    /// 2, on which a client has agreed by TLS.
    Http2,
}

/// Where a connection comes from, and how long it may be idle.
pub(super) struct Peer {
    pub address: IpAddr,
    pub proxies: TrustedProxies,
    pub idle_within: Duration,
}

/// Serves a connection, over TLS if there is an `acceptor`, until its client closes it, asks for nothing, or takes no
/// answers; if `stop` is cancelled, until the requests in progress have their answers.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    acceptor: Option<TlsAcceptor>,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
) {
    let activity = Activity::default();
    let socket = Watched { stream, activity: activity.clone(), notes: Notes::Sent };
    let Some(acceptor) = acceptor else {
        return serve_http(socket, activity, Protocol::Http1, peer, router, stop).await;
    };
    // A handshake that fails or never ends is its client's affair.
    if let Ok(Ok(stream)) = timeout(HANDSHAKE_WITHIN, acceptor.accept(socket)).await {
        let protocol = tls::protocol_of(&stream);
        serve_http(stream, activity, protocol, peer, router, stop).await;
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    activity: Activity,
    protocol: Protocol,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
) {
    let Peer { address, proxies, idle_within } = peer;
    // HTTP/1.1 asks for the next part when the socket has taken the one before.
    let part_bytes_max = if protocol == Protocol::Http1 { usize::MAX } else { PART_BYTES_MAX };
    activity.begin();
    let noted = activity.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let pending = noted.request();
        let address = proxies.client(address, request.headers());
        request.extensions_mut().insert(ClientAddress(address));
        let mut router = router.clone();
        async move {
            let answer = router.call(request.map(Body::new)).await;
            pending.ended_by(TASK.try_with(Arc::clone).ok());
            // The answer goes on until its body is dropped.
            answer.map(|answer| answer.map(|body| AnswerBody::new(body, part_bytes_max, pending)))
        }
    });
    let notes = if protocol == Protocol::Http1 { Notes::Heads } else { Notes::Nothing };
    let io = TokioIo::new(Watched { stream, activity: activity.clone(), notes });
    let mut builder = auto::Builder::new(RequestExecutor);
    builder.http2().max_concurrent_streams(REQUESTS_MAX).max_send_buf_size(PART_BYTES_MAX);
    let builder = match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
    };
    let mut served = pin!(builder.serve_connection(io, service));
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
            _ = check.tick() => {
                activity.end_stalled_answers(TAKE_WITHIN);
                match activity.current() {
                    _ if activity.is_stalled(TAKE_WITHIN) => return,
                    (Phase::Head, since) if since.elapsed() > HEAD_WITHIN => return,
                    // Its client does not take the last parts of answers.
                    (Phase::Idle, since) if since.elapsed() > idle_within + TAKE_WITHIN => return,
                    (Phase::Idle, since) if since.elapsed() > idle_within => {
                        served.as_mut().graceful_shutdown();
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
