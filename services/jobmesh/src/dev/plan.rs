//! What `dev` starts, and with which arguments.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;

use super::config::{Config, Durability};

/// The broker's configuration, as operators have it too.
const NATS_CONF: &str = include_str!("../../../../deploy/nats/jobmesh.conf");

/// How long a child may take to stop, beside the grace that it gives to what it runs.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A child to be started.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    pub log: PathBuf,
    /// How long it may take to stop.
    pub stop_within: Duration,
}

/// The children by stage, in the order of their start: storage, then who decides, then who runs
/// jobs, then who asks.
pub(super) fn stages(config: &Config, data_dir: &Path) -> anyhow::Result<Vec<Vec<Spec>>> {
    let logs = data_dir.join("logs");
    fs::create_dir_all(&logs)?;
    let program = std::env::current_exe().context("this program cannot be found again")?;
    let spec = |name: &str, arguments: &[&str]| Spec {
        name: name.to_owned(),
        program: program.clone(),
        arguments: arguments.iter().map(OsString::from).collect(),
        environment: Vec::new(),
        log: logs.join(format!("{name}.log")),
        stop_within: STOP_WITHIN,
    };
    let mut storage = Vec::new();
    let nats_url = match &config.nats_url {
        Some(url) => url.clone(),
        None => {
            let port = free_port()?;
            storage.push(nats(config, data_dir, &logs, port)?);
            let url = format!("nats://127.0.0.1:{port}");
            // For followers and processors of one's own.
            println!("nats {url}");
            url
        }
    };
    let clickhouse_url = match &config.clickhouse_url {
        Some(url) => url.clone(),
        None => {
            let listen = format!("127.0.0.1:{}", free_port()?);
            let library = fetch::libchdb()?;
            let mut olap = spec("olap", &["serve", "olap", "--listen", &listen]);
            olap.arguments.extend(["--dir".into(), data_dir.join("olap").into()]);
            olap.arguments.extend(["--libchdb".into(), library.into()]);
            storage.push(olap);
            format!("http://{listen}")
        }
    };
    let nats = ["--nats-url", nats_url.as_str()];
    let metrics =
        ["serve", "metrics", nats[0], nats[1], "--clickhouse-url", clickhouse_url.as_str()];
    // Of a broker of our own it is known when it syncs.
    let pipelined = config.durability == Durability::Fast && config.nats_url.is_none();
    let state = ["serve", "state", nats[0], nats[1], "--pipelined-writes"];
    let state = &state[..if pipelined { 5 } else { 4 }];
    let states = (1..=config.states.max(1)).map(|n| spec(&format!("state-{n}"), state));
    let core: Vec<Spec> = states.chain([spec("metrics", &metrics)]).collect();
    let concurrency = config.concurrency.to_string();
    let processor = ["serve", "processor", nats[0], nats[1], "--concurrency", concurrency.as_str()];
    let grace_s = config.grace_s.to_string();
    let processor = [&processor[..], &["--grace-s", grace_s.as_str()]].concat();
    let stop_within = STOP_WITHIN + Duration::from_secs(u64::from(config.grace_s));
    let processors = (1..=config.processors)
        .map(|n| Spec { stop_within, ..spec(&format!("processor-{n}"), &processor) })
        .collect();
    let listen = config.listen.to_string();
    let mut edge = spec("edge", &["serve", "edge", nats[0], nats[1], "--listen", &listen]);
    if config.insecure {
        edge.arguments.push("--insecure".into());
    }
    Ok(vec![storage, core, processors, vec![edge]])
}

fn nats(config: &Config, data_dir: &Path, logs: &Path, port: u16) -> anyhow::Result<Spec> {
    let conf = data_dir.join("nats.conf");
    fs::write(&conf, NATS_CONF)?;
    let sync = match config.durability {
        Durability::Always => "always",
        Durability::Fast => "1s",
    };
    let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
    Ok(Spec {
        name: "nats-server".into(),
        program: fetch::nats_server()?,
        arguments: vec!["--config".into(), conf.into()],
        environment: vec![
            ("JOBMESH_NATS_LISTEN".into(), format!("\"127.0.0.1:{port}\"").into()),
            ("JOBMESH_NATS_STORE".into(), quoted(data_dir.join("nats")).into()),
            ("JOBMESH_NATS_SYNC".into(), sync.into()),
        ],
        log: logs.join("nats-server.log"),
        stop_within: STOP_WITHIN,
    })
}

/// A port that was free a moment ago. A server that finds it taken dies and says so.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(listener.local_addr()?.port())
}
