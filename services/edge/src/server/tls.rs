//! TLS: the certificate and its key are read from files, and again when these change.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use service::{BackgroundTask, tasks};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::connection::Protocol;

/// Reads a certificate that was replaced.
const RELOAD: BackgroundTask = BackgroundTask::new("certificate");
/// How often the files are checked for changes.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// The protocols that clients may agree on.
const HTTP_1_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

/// The files of a certificate.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The current certificate. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tls(Arc<RwLock<Configs>>);

/// How connections are accepted that are served, and those beyond a limit. The latter are closed after one answer, for which
/// only HTTP/1.1 has a header.
#[derive(Clone)]
struct Configs {
    served: Arc<ServerConfig>,
    refused: Arc<ServerConfig>,
}

impl Tls {
    /// Reads certificate and key, and follows changes of their files until `stop` is cancelled.
    ///
    /// # Errors
    /// If they cannot be read or do not belong together.
    pub fn start(certificate: &Path, key: &Path, stop: CancellationToken) -> anyhow::Result<Self> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let version = files.version();
        tasks::list(&[RELOAD]);
        let tls = Self(Arc::new(RwLock::new(files.load()?)));
        tokio::spawn(tls.clone().follow(files, version, stop));
        Ok(tls)
    }

    /// Accepts connections with the current certificate.
    pub fn acceptor(&self, is_served: bool) -> TlsAcceptor {
        let configs = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(if is_served { configs.served } else { configs.refused })
    }

    async fn follow(self, files: Files, mut version: Version, stop: CancellationToken) {
        let mut has_failed = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            let now = files.version();
            if now == version {
                // The files of before were put back.
                if has_failed {
                    RELOAD.succeeded();
                }
                has_failed = false;
                continue;
            }
            match files.load() {
                Ok(config) => {
                    RELOAD.succeeded();
                    *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
                    tracing::info!(file = %files.certificate.display(), "certificate replaced");
                    version = now;
                    has_failed = false;
                }
                // The two files are written one after the other: they are read again.
                Err(error) => {
                    RELOAD.failed(&error);
                    has_failed = true;
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "new certificate not read, the one before stays; trying again"
                    );
                }
            }
        }
    }
}

/// The protocol that a client has agreed on.
pub(super) fn protocol_of<S>(stream: &TlsStream<S>) -> Protocol {
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() == Some(HTTP_2) { Protocol::Http2 } else { Protocol::Http1 }
}

/// When each file was changed.
type Version = [Option<SystemTime>; 2];

impl Files {
    fn version(&self) -> Version {
        [&self.certificate, &self.key]
            .map(|file| std::fs::metadata(file).and_then(|found| found.modified()).ok())
    }

    fn load(&self) -> anyhow::Result<Configs> {
        let Self { certificate, key } = self;
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot read certificates from {}", certificate.display()))?;
        ensure!(!chain.is_empty(), "{} has no certificate", certificate.display());
        let secret = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("cannot read a private key from {}", key.display()))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, secret);
        let mut config = config.with_context(|| {
            format!("{} and {} do not belong together", certificate.display(), key.display())
        })?;
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        let refused = Arc::new(config.clone());
        config.alpn_protocols.insert(0, HTTP_2.to_vec());
        Ok(Configs { served: Arc::new(config), refused })
    }
}
