//! `jobmesh keys`: API keys, over HTTP with an admin's key, or over NATS for the first one.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use nats::{
    Broker,
    api_keys::{Change, KeyRecord, KeyStore, NewKey, Scope},
    audit::AuditRecord,
};
use serde_json::{Value, json};
use service::{NatsLogin, NatsUrl};

use super::{Server, api::Api, json::Json, processor_login, show};
use crate::handlers::JobTypeName;

/// What can be done with API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Makes a key and shows it, once. The first one must have scope admin; from then on each request
    /// needs a key. With --processor: makes a login at NATS for a processor instead.
    Create {
        /// A name for people.
        #[arg(long)]
        name: String,
        /// What it may do; each scope includes the ones before it.
        #[arg(long, value_enum, required_unless_present = "processor")]
        scope: Option<ScopeName>,
        /// A project that it may use; may be repeated. All projects if none is named.
        #[arg(long = "project", value_name = "PROJECT")]
        projects: Vec<String>,
        /// Hide data, results and progress of jobs (scope read).
        #[arg(long)]
        metadata_only: bool,
        /// When it expires: 90d, 12h, 30m.
        #[arg(long)]
        expires: Option<String>,
        #[command(flatten)]
        login: ProcessorLogin,
        #[command(flatten)]
        server: Server,
    },
    /// Lists the keys.
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Revokes a key.
    Revoke {
        /// Its id.
        id: String,
        #[command(flatten)]
        server: Server,
    },
    /// Gives a key another secret and shows it, once. The one before is accepted for a while.
    Rotate {
        /// Its id.
        id: String,
        /// For how long: 24h, 0s.
        #[arg(long, default_value = "24h")]
        keep_old_for: String,
        #[command(flatten)]
        server: Server,
    },
    /// Makes an admin's key over NATS, for a mesh whose edges refuse requests without a key.
    Bootstrap(Bootstrap),
}

/// A login at NATS for a processor.
#[derive(Debug, Args)]
pub(crate) struct ProcessorLogin {
    /// Make a login at NATS for a third-party processor, which may take work of some types only. Nothing is sent: the
    /// user for the configuration of NATS is shown.
    #[arg(
        long,
        requires = "types",
        requires = "seed_file",
        conflicts_with_all = ["scope", "projects", "metadata_only", "expires", "json"]
    )]
    processor: bool,
    /// A type of jobs that it may take; may be repeated.
    #[arg(long = "type", value_enum, value_name = "TYPE", requires = "processor")]
    types: Vec<JobTypeName>,
    /// The file to write its secret to (the seed of an NKEY), which must not exist.
    #[arg(long, value_name = "FILE", requires = "processor")]
    seed_file: Option<PathBuf>,
}

/// How to reach NATS.
#[derive(Debug, Args)]
pub(crate) struct Bootstrap {
    /// A name for people.
    #[arg(long, default_value = "bootstrap")]
    name: String,
    /// The URL of NATS.
    #[arg(long, env = "JOBMESH_NATS_URL", hide_env_values = true)]
    nats_url: NatsUrl,
    #[command(flatten)]
    login: NatsLogin,
}

/// The scopes, as arguments.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScopeName {
    /// Status, lists, counts and events.
    Read,
    /// Enqueue and redo too.
    Enqueue,
    /// Cancel, retry, settings and schedules too.
    Manage,
    /// Everything, API keys included.
    Admin,
}

impl ScopeName {
    fn scope(self) -> Scope {
        match self {
            Self::Read => Scope::Read,
            Self::Enqueue => Scope::Enqueue,
            Self::Manage => Scope::Manage,
            Self::Admin => Scope::Admin,
        }
    }
}

/// Carries out a command.
pub(super) async fn act(keys: Keys) -> anyhow::Result<()> {
    match keys {
        Keys::Create {
            name, login: ProcessorLogin { types, seed_file: Some(file), .. }, ..
        } => processor_login::create(&name, &types, &file),
        Keys::Create { name, scope, projects, metadata_only, expires, server, .. } => {
            let scope = scope.map(|scope| scope.scope().name());
            let mut body = json!({ "name": name, "scope": scope });
            if !projects.is_empty() {
                body["projects"] = projects.into();
            }
            if metadata_only {
                body["metadataOnly"] = true.into();
            }
            if let Some(expires) = expires {
                body["expiresIn"] = expires.into();
            }
            made(&server, &["api", "keys"], &body).await
        }
        Keys::List { server } => {
            let answer = Api::new(&server)?.get("/api/keys", &[]).await?;
            show::answer(server.json, &answer, |answer| show::keys(&answer.field("keys")))
        }
        Keys::Revoke { id, server } => {
            let answer = Api::new(&server)?.delete_in(&["api", "keys", &id]).await?;
            show::answer(server.json, &answer, show::message)
        }
        Keys::Rotate { id, keep_old_for, server } => {
            let body = json!({ "keepOldFor": keep_old_for });
            made(&server, &["api", "keys", &id, "rotate"], &body).await
        }
        Keys::Bootstrap(bootstrap) => bootstrap.run().await,
    }
}

async fn made(server: &Server, path: &[&str], body: &Value) -> anyhow::Result<()> {
    let answer = Api::new(server)?.post_in(path, body).await?;
    show::answer(server.json, &answer, |answer: &Json| {
        let fields = show::fields(&answer.field("key"));
        let secret = answer.field("secret").as_string().unwrap_or_default();
        format!("{fields}\nKeep this key, it is not shown again:\n{secret}")
    })
}

impl Bootstrap {
    async fn run(self) -> anyhow::Result<()> {
        let access = self.login.access(self.nats_url.reveal())?;
        let broker = Broker::connect_with(&access, "jobmesh-cli").await?;
        let new = NewKey {
            name: self.name,
            projects: None,
            scope: Scope::Admin,
            metadata_only: false,
            expires_at: None,
        };
        let store = KeyStore::open(&broker).await?;
        let (change, secret) = store.create(new, service::now_ms()).await?;
        let Change::Set(KeyRecord { id, .. }, _) = change else {
            anyhow::bail!("the key was revoked instead of stored");
        };
        let record = AuditRecord::of_operator(
            "jobmesh keys bootstrap",
            Some(format!("API key {id}")),
            service::now_ms(),
        );
        if let Err(error) = broker.store_audit_record(&record).await {
            eprintln!("jobmesh: the audit log does not have this: {error}");
        }
        show::print(&format!(
            "made API key {id} with scope admin. Keep it, it is not shown again:\n{}",
            secret.reveal()
        ))
    }
}
