//! Hosts of a test's own: network namespaces behind a bridge, each of which can be cut off. Needs root and iproute2.

use std::{
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, ensure};

/// The first two numbers of all addresses: of a private range.
const PREFIX: &str = "10.213";
/// The last number of the address of the bridge.
const BRIDGE: u8 = 254;

/// Networks of this process.
static COUNT: AtomicU8 = AtomicU8::new(0);

/// Hosts that reach one another and this process. Removed on drop.
pub struct Network {
    /// What all names start with.
    name: String,
    /// The third number of the addresses.
    subnet: u8,
    hosts: usize,
}

impl Network {
    /// Makes a network; `None` if this process may not, as without root.
    ///
    /// # Errors
    /// If it is allowed and fails.
    pub fn start(hosts: usize) -> anyhow::Result<Option<Self>> {
        let id = std::process::id();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("jm{id}{}", char::from(b'a' + count % 26));
        let subnet = u8::try_from((id + u32::from(count)) % 250)?;
        let probe = Command::new("ip").args(["netns", "add", &format!("{name}-0")]).output();
        let probe = probe.context("ip is missing: install iproute2")?;
        if !probe.status.success() {
            let why = String::from_utf8_lossy(&probe.stderr).into_owned();
            ensure!(why.contains("not permitted"), "no network namespace: {why}");
            return Ok(None);
        }
        // From here on everything is removed on drop.
        let network = Self { name, subnet, hosts };
        network.make()?;
        Ok(Some(network))
    }

    fn make(&self) -> anyhow::Result<()> {
        let bridge = self.bridge();
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {}/24 dev {bridge}", self.own_address()))?;
        ip(&format!("link set {bridge} up"))?;
        for host in 0..self.hosts {
            let (namespace, link) = (self.namespace(host), self.link(host));
            if host > 0 {
                ip(&format!("netns add {namespace}"))?;
            }
            ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"))?;
            ip(&format!("link set {link} master {bridge} up"))?;
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", self.address(host)))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(())
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> String {
        format!("{PREFIX}.{}.{}", self.subnet, host + 1)
    }

    /// The address of this process for the hosts.
    pub fn own_address(&self) -> String {
        format!("{PREFIX}.{}.{BRIDGE}", self.subnet)
    }

    /// The name of a host's namespace.
    pub fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    /// Cuts a host off from all others.
    ///
    /// # Errors
    /// If that fails.
    pub fn cut(&self, host: usize) -> anyhow::Result<()> {
        ip(&format!("link set {} down", self.link(host)))
    }

    /// Connects it again.
    ///
    /// # Errors
    /// If that fails.
    pub fn heal(&self, host: usize) -> anyhow::Result<()> {
        ip(&format!("link set {} up", self.link(host)))
    }

    /// Cuts two hosts off from each other; both reach the others.
    ///
    /// # Errors
    /// If that fails.
    pub fn cut_between(&self, one: usize, other: usize) -> anyhow::Result<()> {
        self.route(one, other, "add")?;
        self.route(other, one, "add")
    }

    /// Connects them again.
    ///
    /// # Errors
    /// If that fails.
    pub fn heal_between(&self, one: usize, other: usize) -> anyhow::Result<()> {
        self.route(one, other, "del")?;
        self.route(other, one, "del")
    }

    /// Adds or removes a route that drops what a host sends to another.
    fn route(&self, from: usize, to: usize, change: &str) -> anyhow::Result<()> {
        ip(&format!("-n {} route {change} blackhole {}/32", self.namespace(from), self.address(to)))
    }

    fn bridge(&self) -> String {
        format!("{}b", self.name)
    }

    fn link(&self, host: usize) -> String {
        format!("{}{host}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in 0..self.hosts {
            let _ = ip(&format!("netns del {}", self.namespace(host)));
        }
        let _ = ip(&format!("link del {}", self.bridge()));
    }
}

/// A command that runs a program on a host, or here.
pub fn command(program: impl AsRef<std::ffi::OsStr>, namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("ip");
    // It is replaced by the program: the process id is the program's.
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {}", why.trim());
    Ok(())
}
