//! HTTPS: an edge with a certificate, which is replaced while it serves.

use std::{fs, path::Path, process::Command, time::Duration};

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::Certificate;
use tempfile::TempDir;
use testkit::Nats;

use crate::mesh::{free_address, until};

/// Writes a certificate of a new authority; returns the authority.
fn issue(dir: &Path) -> anyhow::Result<Certificate> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let params = CertificateParams::new(vec!["localhost".to_owned()])?;
    let certificate = params.signed_by(&key, &authority)?;
    fs::write(dir.join("edge.key"), key.serialize_pem())?;
    fs::write(dir.join("edge.pem"), certificate.pem())?;
    Ok(Certificate::from_pem(authority.pem().as_bytes())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_serves_https_and_takes_a_new_certificate() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (server, dir, listen) = (Nats::start()?, TempDir::new()?, free_address()?);
    let broker = nats::Broker::connect(&server.url(), "test").await?;
    nats::topology::ensure(&broker, nats::topology::Sizes::default()).await?;
    let first = issue(dir.path())?;
    let mut edge = Command::new(env!("CARGO_BIN_EXE_tests"));
    edge.args(["serve", "edge", "--listen", &listen.to_string(), "--nats-url", &server.url()]);
    edge.arg("--tls-cert").arg(dir.path().join("edge.pem"));
    edge.arg("--tls-key").arg(dir.path().join("edge.key"));
    let log = dir.path().join("edge.log");
    let mut edge = edge.stderr(fs::File::create(&log)?).spawn()?;
    let health = async |authority: &Certificate| {
        // Each client makes a connection of its own.
        let client = reqwest::Client::builder().no_proxy().add_root_certificate(authority.clone());
        let url = format!("https://localhost:{}/healthz", listen.port());
        let request = client.build()?.get(url).timeout(Duration::from_secs(5));
        anyhow::Ok(request.send().await?.status().as_u16())
    };
    until("served", async || {
        let status = health(&first).await?;
        Ok(if status == 200 { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    let plain = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://localhost:{}/healthz", listen.port());
    assert!(plain.get(url).send().await.is_err(), "plain HTTP is not served");
    let second = issue(dir.path())?;
    until("replaced", async || {
        let status = health(&second).await?;
        Ok(if status == 200 { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    assert!(health(&first).await.is_err(), "the first certificate is no longer shown");
    // Files that are of no use change nothing.
    fs::write(dir.path().join("edge.pem"), "nonsense")?;
    until("noticed", async || {
        let log = fs::read_to_string(&log)?;
        Ok(if log.contains("new certificate not read") { Ok(()) } else { Err(log) })
    })
    .await?;
    assert_eq!(health(&second).await?, 200);
    edge.kill()?;
    edge.wait()?;
    Ok(())
}
