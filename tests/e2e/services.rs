//! The services as separate processes on a NATS server or cluster of their own.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::SocketAddr,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
};

use anyhow::Context;
use serde_json::Value;
use tempfile::TempDir;
use testkit::{Cluster, Network, Proxy};

use crate::{
    api::{Api, sql},
    mesh::{free_address, send, until},
};

/// The services that connect to NATS.
pub const ROLES: [&str; 4] = ["state", "metrics", "processor", "edge"];

/// A mesh on a NATS cluster of the test's own. Dropping it kills everything it started.
pub struct Services {
    pub cluster: Cluster,
    /// The proxies, by service, if there is one of each.
    pub proxies: HashMap<String, Proxy>,
    /// The edges.
    pub edges: Vec<Api>,
    /// The addresses for probes of the other services, by name.
    probes: HashMap<String, Api>,
    processes: HashMap<String, Process>,
    dir: TempDir,
    olap: SocketAddr,
    /// The hosts, if each server has one of its own.
    pub network: Option<Network>,
}

/// The program under test.
pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_tests").into()
}

/// A service that was started.
struct Process {
    role: &'static str,
    program: PathBuf,
    namespace: Option<String>,
    environment: Vec<(String, String)>,
    child: Child,
}

impl Deref for Services {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.edges[0]
    }
}

/// The password of the engine's writer.
const OLAP_PASSWORD: &str = "secret";

impl Services {
    /// Starts one of each service on `nodes` NATS servers, each behind a proxy of its own, and waits until the edge is
    /// ready.
    pub async fn start(nodes: usize, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut services = Self::on(Cluster::start(nodes).await?, None)?;
        for (n, role) in ROLES.into_iter().enumerate() {
            let proxy = Proxy::start(services.cluster.address(n % nodes)).await?;
            let url = proxy.url();
            services.proxies.insert(role.to_owned(), proxy);
            services.add(role, role, &url, environment)?;
        }
        services.until_complete().await?;
        Ok(services)
    }

    /// Starts two of each service on three NATS servers, each with the addresses of all.
    pub async fn start_pairs(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::pairs(Self::on(Cluster::start(3).await?, None)?, environment).await
    }

    /// The same on three hosts, each with a NATS server. `None` if this process may not make hosts.
    pub async fn start_on_hosts(environment: &[(&str, &str)]) -> anyhow::Result<Option<Self>> {
        let Some(network) = Network::start(3)? else { return Ok(None) };
        let cluster = Cluster::start_in(&network).await?;
        Self::pairs(Self::on(cluster, Some(network))?, environment).await.map(Some)
    }

    async fn pairs(mut services: Self, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        for (n, role) in ROLES.into_iter().enumerate() {
            for (m, name) in [role.to_owned(), format!("{role}-2")].into_iter().enumerate() {
                // Its own host's server first.
                let nodes = (0..3).map(|node| services.cluster.address((n + m + node) % 3));
                let url = nodes.collect::<Vec<_>>().join(",");
                services.add_on((n + m) % 3, role, &name, &url, environment)?;
            }
        }
        services.until_complete().await?;
        Ok(services)
    }

    /// The ClickHouse engine, and no service yet.
    fn on(cluster: Cluster, network: Option<Network>) -> anyhow::Result<Self> {
        let (dir, mut olap) = (TempDir::new()?, free_address()?);
        if let Some(network) = &network {
            olap.set_ip(network.own_address().parse()?);
        }
        let mut services = Self {
            cluster,
            proxies: HashMap::new(),
            edges: Vec::new(),
            probes: HashMap::new(),
            processes: HashMap::new(),
            dir,
            olap,
            network,
        };
        let in_dir = |name: &str| services.dir.path().join(name).display().to_string();
        let (reader, writer) = (in_dir("olap.password"), in_dir("olap.writer.password"));
        fs::write(&reader, "reader's")?;
        fs::write(&writer, OLAP_PASSWORD)?;
        let environment = [
            ("JOBMESH_OLAP_LISTEN", olap.to_string()),
            ("JOBMESH_OLAP_DIR", in_dir("olap")),
            ("JOBMESH_LIBCHDB", fetch::libchdb()?.display().to_string()),
            ("JOBMESH_OLAP_PASSWORD_FILE", reader),
            ("JOBMESH_OLAP_WRITER_PASSWORD_FILE", writer),
        ];
        services.spawn(None, "olap", "olap", &environment)?;
        Ok(services)
    }

    /// Starts a service.
    fn add(
        &mut self,
        role: &'static str,
        name: &str,
        nats_url: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        self.add_on(0, role, name, nats_url, environment)
    }

    /// Starts a service, on a host if there are some.
    fn add_on(
        &mut self,
        host: usize,
        role: &'static str,
        name: &str,
        nats_url: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let (mut listen, mut probe) = (free_address()?, free_address()?);
        let network = self.network.as_ref();
        if let Some(network) = network {
            let ip = network.address(host).parse()?;
            listen.set_ip(ip);
            probe.set_ip(ip);
        }
        let namespace = network.map(|network| network.namespace(host));
        let mut variables = vec![
            ("JOBMESH_NATS_URL", nats_url.to_owned()),
            ("JOBMESH_REPLICAS", self.cluster.len().to_string()),
            ("JOBMESH_CLICKHOUSE_URL", self.clickhouse_url()),
            ("JOBMESH_LISTEN", listen.to_string()),
            ("JOBMESH_METRICS_LISTEN", probe.to_string()),
        ];
        if namespace.is_some() {
            variables.push(("JOBMESH_INSECURE", "true".to_owned()));
        }
        variables.extend(environment.iter().map(|(name, value)| (*name, (*value).to_owned())));
        match role {
            "edge" => self.edges.push(Api::new(listen)?),
            _ => drop(self.probes.insert(name.to_owned(), Api::new(probe)?)),
        }
        self.spawn(namespace, role, name, &variables)
    }

    /// Waits until all services answer each edge.
    pub async fn until_complete(&self) -> anyhow::Result<()> {
        for edge in &self.edges {
            until("ready", async || {
                let (_, answer) = edge.get("/readyz").await?;
                let is_up = ["nats", "state", "processor", "metrics"]
                    .iter()
                    .all(|part| answer[part] == true);
                Ok(if is_up { Ok(()) } else { Err(answer.to_string()) })
            })
            .await?;
        }
        Ok(())
    }

    /// What a service answers to a probe; the edge does so at its own address.
    pub async fn probe(&self, role: &str, path: &str) -> anyhow::Result<(u16, Value)> {
        match role {
            "edge" => self.edges[0].get(path).await,
            "edge-2" => self.edges[1].get(path).await,
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

    fn spawn(
        &mut self,
        namespace: Option<String>,
        role: &'static str,
        name: &str,
        environment: &[(&str, String)],
    ) -> anyhow::Result<()> {
        let owned = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        let environment: Vec<(String, String)> = environment.iter().map(owned).collect();
        let program = program();
        let child = self.run(&program, namespace.as_deref(), role, name, &environment)?;
        let process = Process { role, program, namespace, environment, child };
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    fn run(
        &self,
        program: &Path,
        namespace: Option<&str>,
        role: &str,
        name: &str,
        environment: &[(String, String)],
    ) -> anyhow::Result<Child> {
        let path = self.dir.path().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(path)?;
        let child = testkit::command(program, namespace)
            .args(["serve", role])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }

    /// Waits for the end of a service, and starts it again.
    pub fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let process = self.processes.get_mut(name).expect("it was started");
        process.child.wait()?;
        let Process { role, program, namespace, environment, .. } = &self.processes[name];
        let child = self.run(program, namespace.as_deref(), role, name, environment)?;
        self.processes.get_mut(name).expect("it was started").child = child;
        Ok(())
    }

    /// Ends a service in order, and starts another program in its place.
    pub fn replace(&mut self, name: &str, program: &Path) -> anyhow::Result<()> {
        self.signal(name, libc::SIGTERM)?;
        self.processes.get_mut(name).expect("it was started").program = program.to_owned();
        self.restart(name)
    }

    /// The state service that leads, as far as their logs say.
    pub fn leading_state(&self) -> anyhow::Result<&'static str> {
        let term_of = |name: &str| {
            let log = self.log(name);
            let line = log.lines().rfind(|line| line.contains("leading term="))?;
            line.split("term=").nth(1)?.split(' ').next()?.parse::<u64>().ok()
        };
        let states = ["state", "state-2"].into_iter();
        let leader = states.filter_map(|name| Some((term_of(name)?, name))).max();
        leader.map(|(_, name)| name).context("no state service has led")
    }

    /// Sends a signal to a service.
    pub fn signal(&self, name: &str, signal: i32) -> anyhow::Result<()> {
        send(self.processes[name].child.id(), signal)
    }

    /// How a service ended, if it has.
    pub fn ended(&mut self, name: &str) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.processes.get_mut(name).expect("it was started").child.try_wait()?)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}
