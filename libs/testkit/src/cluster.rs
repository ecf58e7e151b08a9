//! One NATS server or a cluster of them, with a system account that can close connections.

mod connections;
mod streams;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use async_nats::{Client, ConnectOptions};
use tempfile::TempDir;

use crate::{Network, nats::CONF, network};
use streams::{are_current, leader_of, stream_names};

/// The configuration of a cluster that operators use.
const CLUSTER_CONF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats/cluster.conf");
/// What the tests change of it.
const ADVERTISE: &str = "no_advertise: false";
/// How long the cluster may take to elect its leaders.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// User and password of the system account.
const SYSTEM: &str = "system";

/// Servers of one test, killed on drop.
pub struct Cluster {
    _dir: TempDir,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    /// Its IP address, and the namespace that it runs in, if that is not this one.
    ip: String,
    namespace: Option<String>,
    port: u16,
    conf: PathBuf,
    environment: Vec<(&'static str, String)>,
    server: Child,
}

/// How a server in lame duck mode ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// It is stopped once it leads no stream.
    Stopped,
    /// By itself, when it has closed its connections.
    ByItself,
}

impl Cluster {
    /// Starts `nodes` servers, and waits until JetStream answers. Clients learn of no other server
    /// than the one they connect to, so that a proxy stays between the two.
    ///
    /// # Errors
    /// If there is no nats-server, or JetStream does not answer in time.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::start_syncing(nodes, "1s").await
    }

    /// The same, with when the servers sync their files: `always` or in an interval, as `sync_interval` of NATS.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_syncing(nodes: usize, sync: &str) -> anyhow::Result<Self> {
        Self::start_on(vec![("127.0.0.1".to_owned(), None); nodes], sync).await
    }

    /// Starts a server on each of three hosts, and waits until JetStream answers.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_in(network: &Network) -> anyhow::Result<Self> {
        let host = |n| (network.address(n), Some(network.namespace(n)));
        Self::start_on((0..3).map(host).collect(), "1s").await
    }

    async fn start_on(hosts: Vec<(String, Option<String>)>, sync: &str) -> anyhow::Result<Self> {
        let nodes = hosts.len();
        let dir = TempDir::new()?;
        fs::write(dir.path().join("jobmesh.conf"), fs::read_to_string(CONF)?)?;
        let conf = fs::read_to_string(CLUSTER_CONF)?;
        ensure!(conf.contains(ADVERTISE), "{CLUSTER_CONF} has no {ADVERTISE:?}");
        let conf = conf.replace(ADVERTISE, "no_advertise: true");
        fs::write(dir.path().join("cluster.conf"), conf)?;
        let ports: Vec<(u16, u16)> = (0..nodes)
            .map(|_| Ok((fetch::free_port()?, fetch::free_port()?)))
            .collect::<anyhow::Result<_>>()?;
        let routes: Vec<String> = ports
            .iter()
            .zip(&hosts)
            .map(|((_, port), (ip, _))| format!("\"nats-route://route:{SYSTEM}@{ip}:{port}\""))
            .collect();
        let routes = format!("[{}]", routes.join(", "));
        let mut started = Vec::new();
        for (n, ((port, route), (ip, namespace))) in ports.iter().zip(hosts).enumerate() {
            let name = format!("node-{n}");
            let cluster = if nodes == 1 {
                "server_name: $JOBMESH_NATS_NAME"
            } else {
                "include \"cluster.conf\""
            };
            let conf = dir.path().join(format!("{name}.conf"));
            fs::write(
                &conf,
                format!(
                    "include \"jobmesh.conf\"\n{cluster}\n\
                     accounts {{\n  APP {{ jetstream: enabled, users: [{{ user: app, password: app }}] }}\n  \
                     SYS {{ users: [{{ user: {SYSTEM}, password: {SYSTEM} }}] }}\n}}\n\
                     system_account: SYS\nno_auth_user: app\n"
                ),
            )?;
            let listen = format!("\"{ip}:{route}\"");
            let environment = [
                ("JOBMESH_NATS_NAME", name.clone()),
                ("JOBMESH_NATS_CLUSTER_LISTEN", listen),
                ("JOBMESH_NATS_ROUTES", routes.clone()),
                ("JOBMESH_NATS_ROUTE_PASSWORD", SYSTEM.to_owned()),
                ("JOBMESH_NATS_LISTEN", format!("\"{ip}:{port}\"")),
                (
                    "JOBMESH_NATS_STORE",
                    format!("{:?}", dir.path().join(&name).display().to_string()),
                ),
                ("JOBMESH_NATS_SYNC", sync.to_owned()),
            ];
            let server = spawn(&conf, &environment, namespace.as_deref())?;
            let environment = environment.to_vec();
            started.push(Node { name, ip, namespace, port: *port, conf, environment, server });
        }
        let cluster = Self { _dir: dir, nodes: started };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// How many servers there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The name of a server.
    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// The address of a server.
    pub fn address(&self, node: usize) -> String {
        let Node { ip, port, .. } = &self.nodes[node];
        format!("{ip}:{port}")
    }

    /// Lets the servers close every connection of a client whose name starts with `prefix`, as an
    /// operator can; returns how many were closed.
    ///
    /// # Errors
    /// If no server answers.
    pub async fn kick(&self, prefix: &str) -> anyhow::Result<usize> {
        let client = self.system_client().await?;
        let mut kicked = 0;
        for listed in connections::list(&client, self.nodes.len()).await? {
            let found = listed.data.connections.iter().filter(|it| it.name.starts_with(prefix));
            for connection in found {
                let subject = format!("$SYS.REQ.SERVER.{}.KICK", listed.server.id);
                let request = format!(r#"{{"cid":{}}}"#, connection.cid);
                client.request(subject, request.into()).await?;
                kicked += 1;
            }
        }
        Ok(kicked)
    }

    /// Lets a server lead all streams of the account, as far as it can; waits until it does.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn lead_with(&self, node: usize) -> anyhow::Result<()> {
        let client = self.client(node, ConnectOptions::new()).await?;
        let name = &self.nodes[node].name;
        let preferred = serde_json::json!({ "placement": { "preferred": name } }).to_string();
        let begun = Instant::now();
        for stream in stream_names(&client).await? {
            while leader_of(&client, &stream).await? != Some(name.clone()) {
                ensure!(begun.elapsed() < READY_WITHIN, "{name} does not lead {stream}");
                let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
                // The cluster may have no leader for a moment.
                let _ = client.request(subject, preferred.clone().into()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Waits until each server answers and has a current copy of each stream that it should have.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn until_current(&self) -> anyhow::Result<()> {
        for node in 0..self.nodes.len() {
            self.client(node, ConnectOptions::new()).await?;
        }
        let client = self.client(0, ConnectOptions::new()).await?;
        let begun = Instant::now();
        for stream in stream_names(&client).await? {
            while let Err(copies) = are_current(&client, &stream).await? {
                ensure!(begun.elapsed() < READY_WITHIN, "copies of {stream} are behind: {copies}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Puts a server into lame duck mode, ends it once it leads no stream or waits until it ends by itself, and starts it
    /// again.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn drain_and_restart(&mut self, node: usize, end: DrainEnd) -> anyhow::Result<()> {
        let other = (node + 1) % self.nodes.len();
        let client = self.client(other, ConnectOptions::new()).await?;
        let streams = stream_names(&client).await?;
        self.start_lame_duck(node)?;
        let name = self.nodes[node].name.clone();
        let begun = Instant::now();
        for stream in streams {
            while leader_of(&client, &stream).await?.is_none_or(|leader| leader == name) {
                ensure!(begun.elapsed() < READY_WITHIN, "{name} leads {stream}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        if end == DrainEnd::Stopped {
            signal(self.id(node), "TERM")?;
        }
        let begun = Instant::now();
        while !self.has_ended(node)? {
            ensure!(begun.elapsed() < READY_WITHIN, "{name} does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.restart(node)
    }

    /// Puts a server into lame duck mode: it hands over what it leads, closes its connections bit by bit and ends.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn start_lame_duck(&self, node: usize) -> anyhow::Result<()> {
        signal(self.id(node), "USR2")
    }

    /// Whether a server has ended by itself.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn has_ended(&mut self, node: usize) -> anyhow::Result<bool> {
        Ok(self.nodes[node].server.try_wait()?.is_some())
    }

    /// The process of a server.
    pub fn id(&self, node: usize) -> u32 {
        self.nodes[node].server.id()
    }

    /// Kills a server with SIGKILL.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[node];
        node.server.kill()?;
        node.server.wait()?;
        Ok(())
    }

    /// Starts a killed server on what it left.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self, node: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[node];
        node.server = spawn(&node.conf, &node.environment, node.namespace.as_deref())?;
        Ok(())
    }

    async fn system_client(&self) -> anyhow::Result<Client> {
        let options = ConnectOptions::with_user_and_password(SYSTEM.into(), SYSTEM.into());
        self.client(0, options).await
    }

    /// A connection to a server, which may be starting.
    async fn client(&self, node: usize, options: ConnectOptions) -> anyhow::Result<Client> {
        let begun = Instant::now();
        loop {
            match options.clone().connect(self.address(node)).await {
                Ok(client) => return Ok(client),
                Err(error) if begun.elapsed() > READY_WITHIN => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let last = match self.jetstream_answers().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if begun.elapsed() > READY_WITHIN {
                bail!("JetStream does not answer: {last:#}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn jetstream_answers(&self) -> anyhow::Result<()> {
        for node in 0..self.nodes.len() {
            let client = async_nats::connect(self.address(node)).await?;
            let answer = client.request("$JS.API.INFO", "".into()).await.context("no answer")?;
            let text = String::from_utf8_lossy(&answer.payload).into_owned();
            ensure!(!text.contains("\"error\""), "{text}");
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.server.kill();
            let _ = node.server.wait();
        }
    }
}

fn signal(id: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status()?;
    ensure!(status.success(), "process {id} could not be signalled");
    Ok(())
}

fn spawn(
    conf: &Path,
    environment: &[(&str, String)],
    namespace: Option<&str>,
) -> anyhow::Result<Child> {
    let server = network::command(fetch::nats_server()?, namespace)
        .arg("--config")
        .arg(conf)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(server)
}
