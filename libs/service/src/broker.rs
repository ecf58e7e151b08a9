//! The NATS settings of every service.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use nats::{
    Broker,
    access::{Access, Login, Secret, Tls},
    names,
    topology::{self, Sizes},
};
use tokio_util::sync::CancellationToken;

use crate::{Failures, secret};

/// A list of URLs of NATS, which may hold a password and so is never shown.
pub type NatsUrl = Secret;

/// How long to wait before the streams are looked at again.
const ENSURE_PAUSE: Duration = Duration::from_millis(250);

/// The variables with secrets of NATS.
const PASSWORD: &str = "JOBMESH_NATS_PASSWORD";
const TOKEN: &str = "JOBMESH_NATS_TOKEN";
const NKEY: &str = "JOBMESH_NATS_NKEY";

/// How to log in at NATS, and which certificates to trust.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct NatsLogin {
    /// The user to log in as; its password is in JOBMESH_NATS_PASSWORD or in the next one's file.
    #[arg(long, env = "JOBMESH_NATS_USER")]
    pub nats_user: Option<String>,
    /// A file with the user's password.
    #[arg(long, env = "JOBMESH_NATS_PASSWORD_FILE")]
    pub nats_password_file: Option<PathBuf>,
    /// A file with a token to log in with, if it is not in JOBMESH_NATS_TOKEN.
    #[arg(long, env = "JOBMESH_NATS_TOKEN_FILE")]
    pub nats_token_file: Option<PathBuf>,
    /// A file with the seed of an NKEY to log in with, if it is not in JOBMESH_NATS_NKEY.
    #[arg(long, env = "JOBMESH_NATS_NKEY_FILE")]
    pub nats_nkey_file: Option<PathBuf>,
    /// A credentials file (JWT and seed) to log in with.
    #[arg(long, env = "JOBMESH_NATS_CREDS")]
    pub nats_creds: Option<PathBuf>,
    /// A file with certificates of authorities to trust in addition to the system's, as PEM.
    #[arg(long, env = "JOBMESH_NATS_CA")]
    pub nats_ca: Option<PathBuf>,
    /// A file with the certificate that this client shows, as PEM.
    #[arg(long, env = "JOBMESH_NATS_CERT", requires = "nats_key")]
    pub nats_cert: Option<PathBuf>,
    /// A file with the key of that certificate, as PEM.
    #[arg(long, env = "JOBMESH_NATS_KEY", requires = "nats_cert")]
    pub nats_key: Option<PathBuf>,
}

impl NatsLogin {
    /// The access to the servers at `urls`, separated by commas.
    ///
    /// # Errors
    /// If a file cannot be read, a URL is none, or there is more than one login.
    pub fn access(&self, urls: &str) -> anyhow::Result<Access> {
        let password = secret::read(PASSWORD, self.nats_password_file.as_deref())?;
        let token = secret::read(TOKEN, self.nats_token_file.as_deref())?;
        let nkey = secret::read(NKEY, self.nats_nkey_file.as_deref())?;
        let credentials = match &self.nats_creds {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                Some(text.with_context(|| format!("cannot read {}", file.display()))?.into())
            }
            None => None,
        };
        let user = match (&self.nats_user, password) {
            (None, None) => None,
            (Some(user), Some(password)) => Some(Login::Password { user: user.clone(), password }),
            (Some(_), None) => {
                bail!("--nats-user needs {PASSWORD} (or --nats-password-file)")
            }
            (None, Some(_)) => bail!("{PASSWORD} is set without --nats-user"),
        };
        let logins = [
            user,
            token.map(Login::Token),
            nkey.map(Login::Nkey),
            credentials.map(Login::Credentials),
        ];
        let mut logins = logins.into_iter().flatten();
        let login = logins.next().unwrap_or_default();
        if logins.next().is_some() {
            bail!(
                "more than one login is set for NATS: keep one of user, token, NKEY, credentials"
            );
        }
        let client = self.nats_cert.clone().zip(self.nats_key.clone());
        let tls = Tls { ca: self.nats_ca.clone(), client };
        Ok(Access::new(urls, login, tls)?)
    }

    /// The arguments that make a child process log in as this one does; secrets are not among them.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let files = [
            ("--nats-password-file", &self.nats_password_file),
            ("--nats-token-file", &self.nats_token_file),
            ("--nats-nkey-file", &self.nats_nkey_file),
            ("--nats-creds", &self.nats_creds),
            ("--nats-ca", &self.nats_ca),
            ("--nats-cert", &self.nats_cert),
            ("--nats-key", &self.nats_key),
        ];
        if let Some(user) = &self.nats_user {
            arguments.extend(["--nats-user".into(), user.into()]);
        }
        for (name, file) in files {
            if let Some(file) = file {
                arguments.extend([name.into(), file.into()]);
            }
        }
        arguments
    }
}

/// A service, as NATS knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// It publishes commands and follows events.
    Edge,
    /// It makes and writes the streams.
    State,
    /// It reads events.
    Metrics,
    /// It takes work and publishes outcomes.
    Processor,
}

impl Identity {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::State, Self::Edge, Self::Metrics, Self::Processor];

    /// The streams whose leaders it needs. Logins of third-party processors may ask for no others.
    fn streams(self) -> Vec<String> {
        match self {
            Self::Processor => names::work_streams(),
            Self::Edge | Self::State | Self::Metrics => names::job_streams(),
        }
    }

    /// Its name, which its user and its inboxes have too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::State => "state",
            Self::Metrics => "metrics",
            Self::Processor => "processor",
        }
    }
}

/// The address of NATS, and the sizes of its streams.
#[derive(Clone, Debug, clap::Args)]
pub struct Nats {
    /// The URL of a NATS server with JetStream, or several of one cluster separated by commas. It may hold a
    /// user and a password, or a token: then better in the variable than as an argument.
    #[arg(
        long,
        env = "JOBMESH_NATS_URL",
        default_value = "nats://127.0.0.1:4222",
        hide_env_values = true
    )]
    pub nats_url: NatsUrl,
    #[command(flatten)]
    login: NatsLogin,
    /// What inboxes begin with, behind `_INBOX.`, if the login has inboxes of its own: the name of the service if not
    /// set.
    #[arg(long, env = "JOBMESH_NATS_INBOX")]
    pub nats_inbox: Option<String>,
    /// On how many servers of a cluster each stream is kept: 3 in a cluster and 1 otherwise, if not set. State raises
    /// the number of streams that have fewer.
    #[arg(long, env = "JOBMESH_REPLICAS")]
    pub replicas: Option<usize>,
    /// The size of COMMANDS in MB: 2048 if not set. State applies it to a stream that exists, so with the next.
    #[arg(long, env = "JOBMESH_COMMANDS_MB")]
    pub commands_mb: Option<u32>,
    /// The size of EVENTS in MB: 4096 if not set.
    #[arg(long, env = "JOBMESH_EVENTS_MB")]
    pub events_mb: Option<u32>,
    /// The size of each stream of ready work in MB: 512 if not set.
    #[arg(long, env = "JOBMESH_WORK_MB")]
    pub work_mb: Option<u32>,
    /// The size of the bucket of jobs in MB: 8192 if not set.
    #[arg(long, env = "JOBMESH_JOBS_MB")]
    pub jobs_mb: Option<u32>,
    /// The size of the object store of large results in MB: 8192 if not set.
    #[arg(long, env = "JOBMESH_RESULTS_MB")]
    pub results_mb: Option<u32>,
}

impl Nats {
    /// Connects as `name` and waits until streams and buckets are there, which state makes; `None` where
    /// `stop` came first.
    ///
    /// # Errors
    /// If existing streams break the rules.
    pub async fn connect(
        &self,
        identity: Identity,
        name: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Broker>> {
        let inbox = self.nats_inbox.as_deref().unwrap_or(identity.name());
        let access = self.login.access(self.nats_url.reveal())?.with_inboxes_of(inbox);
        let Some(broker) = Broker::connect_until(&access, name, identity.streams(), stop).await?
        else {
            return Ok(None);
        };
        let sizes = self.sizes();
        let mut failures = Failures::default();
        loop {
            let ensured = match identity {
                Identity::State => topology::ensure(&broker, sizes).await,
                Identity::Processor => topology::check_for_processors(&broker, sizes).await,
                Identity::Edge | Identity::Metrics => topology::check_all(&broker, sizes).await,
            };
            use topology::Error::{Absent, Async, Mismatch, Payload};
            match ensured {
                Ok(()) => return Ok(Some(broker)),
                Err(error @ (Mismatch { .. } | Payload { .. } | Async { .. })) => {
                    return Err(error).context("the NATS account is not usable");
                }
                Err(error) if !failures.is_news(&error.to_string()) => {}
                Err(error @ Absent { .. }) => tracing::info!(%error, "waiting for the streams"),
                Err(error) => tracing::warn!(%error, "streams not ensured yet, trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(ENSURE_PAUSE) => {}
            }
        }
    }

    /// The sizes of the streams, as far as they are set.
    pub fn sizes(&self) -> Sizes {
        let bytes = |mb: Option<u32>| mb.map(|mb| i64::from(mb) << 20);
        Sizes {
            commands_bytes: bytes(self.commands_mb),
            events_bytes: bytes(self.events_mb),
            work_bytes: bytes(self.work_mb),
            jobs_bytes: bytes(self.jobs_mb),
            results_bytes: bytes(self.results_mb),
            replicas: self.replicas,
        }
    }
}
