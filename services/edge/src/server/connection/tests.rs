//! Connections whose clients take nothing. The clock is that of the test: it moves on when everything waits.

use std::net::Ipv4Addr;

use axum::routing;
use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::{Builder, Connection, SendRequest};
use tokio::{
    io::{AsyncWriteExt, BufStream, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::server::activity::Watched;

/// More than the sockets of these tests take, and less than the buffer above them.
const LONG: usize = 100_000;
const SOCKET_BYTES: usize = 1_024;
const BUFFER_BYTES: usize = 256 * 1_024;
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// When a client that takes nothing must be disconnected.
const ENDED_WITHIN: Duration = Duration::from_secs(75);

/// Serves a client over a socket that takes so many bytes, with a buffer above it as TLS has one.
fn serve_over(socket_bytes: usize, protocol: Protocol) -> (DuplexStream, JoinHandle<()>) {
    let (client, stream) = duplex(socket_bytes);
    let activity = Activity::default();
    let stream = Watched { stream, activity: activity.clone() };
    let stream = BufStream::with_capacity(BUFFER_BYTES, BUFFER_BYTES, stream);
    let proxies = TrustedProxies::new(&[]);
    let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), proxies, idle_within: IDLE_WITHIN };
    let router = Router::new()
        .route("/long", routing::get(async || "a".repeat(LONG)))
        .route("/short", routing::get(async || "ok"));
    let served = serve(stream, activity, protocol, peer, router, CancellationToken::new());
    (client, tokio::spawn(served))
}

type Http2 = (SendRequest<Bytes>, Connection<DuplexStream, Bytes>);

async fn http2(client: DuplexStream, window: u32) -> Http2 {
    let mut builder = Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
    builder.handshake(client).await.expect("an edge answers")
}

async fn get(requests: &SendRequest<Bytes>, path: &str) -> hyper::Response<h2::RecvStream> {
    let mut requests = requests.clone().ready().await.expect("there is room for a request");
    let request = hyper::Request::get(format!("http://localhost{path}")).body(());
    let request = request.expect("it is a request");
    let (answer, _) = requests.send_request(request, true).expect("it is sent");
    answer.await.expect("it is answered")
}

#[tokio::test(start_paused = true)]
async fn client_of_http_1_that_takes_nothing_is_disconnected() {
    let (mut client, served) = serve_over(SOCKET_BYTES, Protocol::Http1);
    let request = b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.write_all(request).await.expect("the socket takes it");
    timeout(ENDED_WITHIN, served).await.expect("it has ended").expect("it did not panic");
}

#[tokio::test(start_paused = true)]
async fn client_of_http_2_that_takes_nothing_is_disconnected() {
    let (client, served) = serve_over(SOCKET_BYTES, Protocol::Http2);
    let (requests, mut connection) = http2(client, i32::MAX as u32).await;
    // Its part of the connection stops in the middle.
    let asked = async { get(&requests, "/long").await };
    tokio::select! {
        biased;
        _ = asked => {}
        _ = &mut connection => panic!("the edge closes it at once"),
    }
    timeout(ENDED_WITHIN, served).await.expect("it has ended").expect("it did not panic");
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn answer_that_is_not_taken_is_reset_and_others_of_its_connection_go_on() {
    let (client, _served) = serve_over(BUFFER_BYTES, Protocol::Http2);
    let (requests, connection) = http2(client, 1_000).await;
    tokio::spawn(connection);
    let mut untaken = get(&requests, "/long").await.into_body();
    let first = untaken.data().await.expect("it has a body").expect("it begins");
    assert_eq!(first.len(), 1_000);
    let began = Instant::now();
    loop {
        assert_eq!(get(&requests, "/short").await.status(), 200);
        if let Some(Some(Err(_))) = untaken.data().now_or_never() {
            break;
        }
        assert!(began.elapsed() < ENDED_WITHIN, "it is not reset");
        sleep(CHECK_EVERY).await;
    }
    assert!(began.elapsed() > TAKE_WITHIN, "it had less time than it may take");
    assert_eq!(get(&requests, "/short").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn connection_of_http_2_without_requests_is_closed() {
    let (client, served) = serve_over(BUFFER_BYTES, Protocol::Http2);
    let (requests, connection) = http2(client, 65_535).await;
    tokio::spawn(connection);
    assert_eq!(get(&requests, "/short").await.status(), 200);
    let ended = timeout(IDLE_WITHIN + CHECK_EVERY * 2, served).await;
    ended.expect("it has ended").expect("it did not panic");
}
