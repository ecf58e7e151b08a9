//! HTTPS: an edge with a certificate, which is replaced while it serves, and HTTP/2 on its connections.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use axum::http::{Method, Request};
use bytes::Bytes;
use futures_util::{FutureExt, future::try_join_all};
use h2::client::SendRequest;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::Certificate;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tempfile::TempDir;
use testkit::Nats;

use crate::mesh::{free_address, until};

/// An edge with HTTPS and nothing behind it but NATS. Dropping it kills it.
struct Edge {
    listen: SocketAddr,
    dir: TempDir,
    log: PathBuf,
    process: Child,
    _nats: Nats,
}

impl Edge {
    /// Starts an edge with a certificate of a new authority; returns the authority in PEM.
    async fn start() -> anyhow::Result<(Self, String)> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (server, dir, listen) = (Nats::start()?, TempDir::new()?, free_address()?);
        let broker = nats::Broker::connect(&server.url(), "test").await?;
        nats::topology::ensure(&broker, nats::topology::Sizes::default()).await?;
        let authority = issue(dir.path())?;
        let mut edge = Command::new(env!("CARGO_BIN_EXE_tests"));
        edge.args(["serve", "edge", "--listen", &listen.to_string(), "--nats-url", &server.url()]);
        edge.arg("--tls-cert").arg(dir.path().join("edge.pem"));
        edge.arg("--tls-key").arg(dir.path().join("edge.key"));
        let log = dir.path().join("edge.log");
        let process = edge.stderr(fs::File::create(&log)?).spawn()?;
        let edge = Self { listen, dir, log, process, _nats: server };
        edge.until_healthy(&authority).await?;
        Ok((edge, authority))
    }

    /// The status of `/healthz` on a connection of its own, for a client that trusts this authority.
    async fn health(&self, authority: &str) -> anyhow::Result<u16> {
        let authority = Certificate::from_pem(authority.as_bytes())?;
        let client = reqwest::Client::builder().no_proxy().add_root_certificate(authority);
        let url = format!("https://localhost:{}/healthz", self.listen.port());
        let request = client.build()?.get(url).timeout(Duration::from_secs(5));
        Ok(request.send().await?.status().as_u16())
    }

    async fn until_healthy(&self, authority: &str) -> anyhow::Result<()> {
        until("served", async || {
            let status = self.health(authority).await?;
            Ok(if status == 200 { Ok(()) } else { Err(status.to_string()) })
        })
        .await
    }

    /// A connection of HTTP/2.
    async fn http2(&self, authority: &str) -> anyhow::Result<SendRequest<Bytes>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(self.listen).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("localhost".try_into()?, stream).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(requests)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes a certificate of a new authority; returns the authority in PEM.
fn issue(dir: &Path) -> anyhow::Result<String> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let params = CertificateParams::new(vec!["localhost".to_owned()])?;
    let certificate = params.signed_by(&key, &authority)?;
    fs::write(dir.join("edge.key"), key.serialize_pem())?;
    fs::write(dir.join("edge.pem"), certificate.pem())?;
    Ok(authority.pem())
}

/// Status and body of an answer of HTTP/2.
async fn answer_of(
    requests: &SendRequest<Bytes>,
    method: Method,
    uri: &str,
    body: Bytes,
) -> anyhow::Result<(u16, String)> {
    let mut requests = requests.clone().ready().await?;
    let request = Request::builder().method(method).uri(uri).body(())?;
    let (answer, mut sending) = requests.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        // The edge may refuse the rest.
        let _ = sending.send_data(body, true);
    }
    let (head, mut body) = answer.await?.into_parts();
    let mut text = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        text.extend_from_slice(&bytes);
    }
    Ok((head.status.as_u16(), String::from_utf8(text)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_share_a_connection_of_http_2() -> anyhow::Result<()> {
    let (edge, authority) = Edge::start().await?;
    let requests = edge.http2(&authority).await?;
    let get = async |uri: &str| answer_of(&requests, Method::GET, uri, Bytes::new()).await;
    // A stream of events stays open beside everything else.
    let events = Request::get("https://localhost/api/queue/events?projectId=p").body(())?;
    let (events, _) = requests.clone().ready().await?.send_request(events, true)?;
    let events = events.await?;
    assert_eq!(events.status(), 200);
    let answers = try_join_all((0..200).map(|_| get("https://localhost/healthz"))).await?;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    // It goes on: there is no event, or the first of them.
    let mut events = events.into_body();
    let next = events.data().now_or_never();
    assert!(next.is_none_or(|data| data.is_some_and(|data| data.is_ok())), "it has ended");
    let (status, answer) = get("https://attacker.example/api/queue/stats").await?;
    assert!(status == 421 && answer.contains("host_not_allowed"), "{status} {answer}");
    let large = Bytes::from(vec![b' '; 5 * 1024 * 1024]);
    let uri = "https://localhost/api/queue/enqueue";
    let (status, answer) = answer_of(&requests, Method::POST, uri, large).await?;
    assert!(status == 413 && answer.contains("too_large"), "{status} {answer}");
    assert_eq!(get("https://localhost/healthz").await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_serves_https_and_takes_a_new_certificate() -> anyhow::Result<()> {
    let (edge, first) = Edge::start().await?;
    let requests = edge.http2(&first).await?;
    let tasks = "https://localhost/api/tasks";
    let (_, tasks) = answer_of(&requests, Method::GET, tasks, Bytes::new()).await?;
    assert!(tasks.contains(r#""task":"certificate","service":"edge""#), "{tasks}");
    let plain = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://localhost:{}/healthz", edge.listen.port());
    assert!(plain.get(url).send().await.is_err(), "plain HTTP is not served");
    // The commands say which certificates they do not accept, and why.
    let ask = async |host: &str, authority: &str| {
        let file = edge.dir.path().join("authority.pem");
        fs::write(&file, authority)?;
        let url = format!("https://{host}:{}/certificate", edge.listen.port());
        let mut ask = tokio::process::Command::new(env!("CARGO_BIN_EXE_tests"));
        ask.args(["stats", "--url", &url]).env("SSL_CERT_FILE", file);
        anyhow::Ok(ask.output().await?)
    };
    let another = issue(TempDir::new()?.path())?;
    for (host, authority, reason) in
        [("localhost", &another, "BadSignature"), ("127.0.0.1", &first, "not valid for name")]
    {
        let refused = ask(host, authority).await?;
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(4), "{text}");
        assert!(text.contains("is not accepted") && text.contains(reason), "{text}");
        assert_eq!(text.contains("SSL_CERT_FILE"), host == "localhost", "{text}");
    }
    let answered = String::from_utf8(ask("localhost", &first).await?.stderr)?;
    assert!(!answered.contains("is not accepted"), "{answered}");
    let second = issue(edge.dir.path())?;
    edge.until_healthy(&second).await?;
    assert!(edge.health(&first).await.is_err(), "the first certificate is no longer shown");
    // Files that are of no use change nothing.
    fs::write(edge.dir.path().join("edge.pem"), "nonsense")?;
    until("noticed", async || {
        let log = fs::read_to_string(&edge.log)?;
        Ok(if log.contains("new certificate not read") { Ok(()) } else { Err(log) })
    })
    .await?;
    assert_eq!(edge.health(&second).await?, 200);
    Ok(())
}
