//! The services as separate processes, each with a proxy between it and NATS.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::SocketAddr,
    ops::Deref,
    process::{Child, Command, ExitStatus, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use testkit::{Cluster, Proxy};

use crate::{
    api::{Api, sql},
    mesh::{free_address, send, until},
};

/// The services that connect to NATS.
pub const ROLES: [&str; 4] = ["state", "metrics", "processor", "edge"];

/// A mesh on a NATS cluster of the test's own. Dropping it kills everything it started.
pub struct Services {
    pub cluster: Cluster,
    /// The proxies, by role.
    pub proxies: HashMap<&'static str, Proxy>,
    /// The addresses for probes, by role.
    probes: HashMap<&'static str, Api>,
    children: HashMap<String, Child>,
    dir: TempDir,
    olap: SocketAddr,
    api: Api,
}

impl Deref for Services {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

/// The password of the engine's writer.
const OLAP_PASSWORD: &str = "secret";

impl Services {
    /// Starts one of each service on `nodes` NATS servers, and waits until the edge is ready.
    pub async fn start(nodes: usize, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let cluster = Cluster::start(nodes).await?;
        let (mut proxies, mut probes) = (HashMap::new(), HashMap::new());
        for (n, role) in ROLES.into_iter().enumerate() {
            proxies.insert(role, Proxy::start(cluster.address(n % nodes)).await?);
            probes.insert(role, Api::new(free_address()?)?);
        }
        let (listen, olap) = (free_address()?, free_address()?);
        let api = Api::new(listen)?;
        let dir = TempDir::new()?;
        let mut services =
            Self { cluster, proxies, probes, children: HashMap::new(), dir, olap, api };
        let library = fetch::libchdb()?;
        let olap_dir = services.dir.path().join("olap");
        let password = services.dir.path().join("olap.password");
        fs::write(&password, "reader's")?;
        let writer = services.dir.path().join("olap.writer.password");
        fs::write(&writer, OLAP_PASSWORD)?;
        let olap = [
            ("JOBMESH_OLAP_LISTEN", olap.to_string()),
            ("JOBMESH_OLAP_DIR", olap_dir.display().to_string()),
            ("JOBMESH_LIBCHDB", library.display().to_string()),
            ("JOBMESH_OLAP_PASSWORD_FILE", password.display().to_string()),
            ("JOBMESH_OLAP_WRITER_PASSWORD_FILE", writer.display().to_string()),
        ];
        services.spawn("olap", &olap)?;
        for role in ROLES {
            let mut variables = vec![
                ("JOBMESH_NATS_URL", services.proxies[role].url()),
                ("JOBMESH_REPLICAS", nodes.to_string()),
                ("JOBMESH_CLICKHOUSE_URL", services.clickhouse_url()),
                ("JOBMESH_LISTEN", listen.to_string()),
                ("JOBMESH_METRICS_LISTEN", services.probes[role].url("").replace("http://", "")),
            ];
            variables.extend(environment.iter().map(|(name, value)| (*name, (*value).to_owned())));
            services.spawn(role, &variables)?;
        }
        until("ready", async || {
            let (_, answer) = services.get("/readyz").await?;
            let is_up =
                ["nats", "state", "processor", "metrics"].iter().all(|part| answer[part] == true);
            Ok(if is_up { Ok(()) } else { Err(answer.to_string()) })
        })
        .await?;
        Ok(services)
    }

    /// What a service answers to a probe; the edge does so at its own address.
    pub async fn probe(&self, role: &str, path: &str) -> anyhow::Result<(u16, Value)> {
        match role {
            "edge" => self.api.get(path).await,
            role => self.probes[role].get(path).await,
        }
    }

    /// The URL of ClickHouse's interface.
    pub fn clickhouse_url(&self) -> String {
        format!("http://writer:{OLAP_PASSWORD}@{}", self.olap)
    }

    /// Runs a query on the ClickHouse engine; its answer as text.
    pub async fn sql(&self, query: &str) -> anyhow::Result<String> {
        sql(&self.clickhouse_url(), query).await
    }

    /// What a service has logged.
    pub fn log(&self, role: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{role}.log"))).unwrap_or_default()
    }

    fn spawn(&mut self, role: &str, environment: &[(&str, String)]) -> anyhow::Result<()> {
        let log = File::create(self.dir.path().join(format!("{role}.log")))?;
        let child = Command::new(env!("CARGO_BIN_EXE_tests"))
            .args(["serve", role])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.children.insert(role.to_owned(), child);
        Ok(())
    }

    /// Sends a signal to a service.
    pub fn signal(&self, role: &str, signal: i32) -> anyhow::Result<()> {
        send(self.children[role].id(), signal)
    }

    /// How a service ended, if it has.
    pub fn ended(&mut self, role: &str) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.children.get_mut(role).expect("it was started").try_wait()?)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
