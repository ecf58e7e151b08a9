//! Connections whose clients take nothing. The clock is that of the test: it moves on when everything waits.

use std::{io::Write, net::Ipv4Addr};

use axum::routing;
use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::{Builder, Connection, SendRequest};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, crypto::ring};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;

/// More than the sockets of these tests take, and less than the buffer of TLS.
const LONG: usize = 50_000;
const SOCKET_BYTES: usize = 1_024;
const LARGE_SOCKET_BYTES: usize = 256 * 1_024;
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// When a client that takes nothing must be disconnected.
const ENDED_WITHIN: Duration = Duration::from_secs(75);

/// Serves a client over TLS and a socket that takes so many bytes.
fn serve_over(
    socket_bytes: usize,
    protocol: Protocol,
) -> (DuplexStream, Arc<ClientConfig>, JoinHandle<()>) {
    let (client, stream) = duplex(socket_bytes);
    let (server_config, client_config) = tls_configs(protocol);
    let proxies = TrustedProxies::new(&[]);
    let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), proxies, idle_within: IDLE_WITHIN };
    let router = Router::new()
        .route("/long", routing::get(async || "a".repeat(LONG)))
        .route("/short", routing::get(async || "ok"));
    let acceptor = Some(TlsAcceptor::from(server_config));
    let served = serve(stream, acceptor, peer, router, CancellationToken::new());
    (client, client_config, tokio::spawn(served))
}

fn tls_configs(protocol: Protocol) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a name is enough");
    let key = made.signing_key.serialize_der().try_into().expect("it is a key");
    let protocols = if protocol == Protocol::Http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    let provider = Arc::new(ring::default_provider());
    let server =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let server = server.expect("the provider has them").with_no_client_auth();
    let mut server =
        server.with_single_cert(vec![made.cert.der().clone()], key).expect("they belong together");
    server.alpn_protocols.clone_from(&protocols);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("it is a certificate");
    let client =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let client = client.expect("the provider has them").with_root_certificates(roots);
    let mut client = client.with_no_client_auth();
    client.alpn_protocols = protocols;
    (Arc::new(server), Arc::new(client))
}

async fn connect(client: DuplexStream, config: Arc<ClientConfig>) -> TlsStream<DuplexStream> {
    let name = "localhost".try_into().expect("it is a name");
    TlsConnector::from(config).connect(name, client).await.expect("the certificate is known")
}

type Http2 = (SendRequest<Bytes>, Connection<TlsStream<DuplexStream>, Bytes>);

async fn http2(client: TlsStream<DuplexStream>, window: u32) -> Http2 {
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
    let (client, config, served) = serve_over(SOCKET_BYTES, Protocol::Http1);
    let mut client = connect(client, config).await;
    let request = b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.write_all(request).await.expect("the socket takes it");
    timeout(ENDED_WITHIN, served).await.expect("it has ended").expect("it did not panic");
}

#[tokio::test(start_paused = true)]
async fn client_of_http_2_that_takes_nothing_is_disconnected() {
    let (client, config, served) = serve_over(SOCKET_BYTES, Protocol::Http2);
    let client = connect(client, config).await;
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
    let (client, config, _served) = serve_over(LARGE_SOCKET_BYTES, Protocol::Http2);
    let client = connect(client, config).await;
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
    let (client, config, served) = serve_over(LARGE_SOCKET_BYTES, Protocol::Http2);
    let client = connect(client, config).await;
    let (requests, connection) = http2(client, 65_535).await;
    tokio::spawn(connection);
    assert_eq!(get(&requests, "/short").await.status(), 200);
    let ended = timeout(IDLE_WITHIN + CHECK_EVERY * 2, served).await;
    ended.expect("it has ended").expect("it did not panic");
}

/// Its first part comes with the last message of the handshake, and the rest never.
#[tokio::test(start_paused = true)]
async fn head_that_comes_with_the_handshake_must_end() {
    let (mut client, config, served) = serve_over(LARGE_SOCKET_BYTES, Protocol::Http1);
    let name = "localhost".try_into().expect("it is a name");
    let mut tls = ClientConnection::new(config, name).expect("the configuration is complete");
    while tls.is_handshaking() {
        let mut bytes = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut bytes).expect("it is written to memory");
        }
        client.write_all(&bytes).await.expect("the socket takes it");
        let mut received = vec![0; LARGE_SOCKET_BYTES];
        let length = client.read(&mut received).await.expect("the edge answers");
        tls.read_tls(&mut &received[..length]).expect("it is read from memory");
        tls.process_new_packets().expect("it is TLS");
    }
    tls.writer().write_all(b"GET /short HTTP/1.1\r\nHo").expect("it is written to memory");
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).expect("it is written to memory");
    }
    client.write_all(&bytes).await.expect("the socket takes it");
    let ended = timeout(HEAD_WITHIN + CHECK_EVERY * 2, served).await;
    ended.expect("it has ended").expect("it did not panic");
}
