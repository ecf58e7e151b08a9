//! What `dev` starts, and with which arguments.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use nats::access::Secret;
use service::Identity;

use super::{
    broker::Watched,
    config::{Config, Durability},
    environment::Role,
};

/// The broker's configuration, as operators have it too.
const NATS_CONF: &str = include_str!("../../../../deploy/nats/jobmesh.conf");

/// How metrics logs in at a ClickHouse server of yours.
const CLICKHOUSE_LOGIN: [&str; 3] =
    ["JOBMESH_CLICKHOUSE_USER", "JOBMESH_CLICKHOUSE_PASSWORD", "JOBMESH_CLICKHOUSE_PASSWORD_FILE"];

/// The logins of its services, as operators have them too.
const NATS_IDENTITIES: &str = include_str!("../../../../deploy/nats/identities.conf");

/// The file in the data directory with users of one's own for the broker, such as `jobmesh keys create --processor` shows.
const NATS_USERS: &str = "nats.users.conf";

/// The user of people at the broker of `dev`, who may do everything.
const NATS_USER: &str = "jobmesh";

/// The length of a password that `dev` makes.
const PASSWORD_CHARS: usize = 32;

/// How long a child may take to stop, in addition to the grace period of its runs.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A child to be started.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// All of its environment.
    pub environment: Vec<(OsString, OsString)>,
    pub log: PathBuf,
    /// How long it may take to stop.
    pub stop_within: Duration,
    /// How its health is watched, if it is the broker.
    pub watched: Option<Watched>,
}

impl Spec {
    /// Whether it is one of this program's services.
    pub fn is_service(&self) -> bool {
        self.arguments.first().is_some_and(|first| first == "serve")
    }
}

/// What `dev` starts.
pub(super) struct Plan {
    /// The children by stage.
    pub stages: Vec<Vec<Spec>>,
    /// Where everything is stored, with the logins that may do everything.
    pub storage: Storage,
}

/// The stores of a mesh.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// The URL of NATS.
    pub nats: Secret,
    /// The URL of ClickHouse.
    pub clickhouse: Secret,
}

/// The children by stage, in the order of their start: storage, then who decides, then who runs
/// jobs, then who asks.
pub(super) fn plan(config: &Config, data_dir: &Path) -> anyhow::Result<Plan> {
    let logs = data_dir.join("logs");
    fs::create_dir_all(&logs)?;
    let program = std::env::current_exe().context("this program cannot be found again")?;
    let has_own_nats = config.nats_url.is_none();
    let spec = |name: &str, role: Role, arguments: &[&str]| Spec {
        name: name.to_owned(),
        program: program.clone(),
        arguments: arguments.iter().map(OsString::from).collect(),
        environment: role.environment(has_own_nats),
        log: logs.join(format!("{name}.log")),
        stop_within: STOP_WITHIN,
        watched: None,
    };
    let mut storage = Vec::new();
    let (nats_urls, admin): (HashMap<Identity, String>, String) = match &config.nats_url {
        Some(url) => {
            // Checked here, so that the error is visible: a child would log it.
            config.login.access(url.reveal())?;
            let urls = Identity::ALL.map(|identity| (identity, url.reveal().to_owned()));
            (urls.into(), url.reveal().to_owned())
        }
        None => {
            let port = fetch::free_port()?;
            let (file, secret) = password(data_dir.join("nats.password"))?;
            let address = format!("127.0.0.1:{port}");
            let admin = format!("nats://{NATS_USER}:{secret}@{address}");
            let mut logins = vec![("JOBMESH_NATS_PASSWORD".to_owned(), secret)];
            let mut urls = HashMap::new();
            for identity in Identity::ALL {
                let name = identity.name();
                let (_, secret) = password(data_dir.join(format!("nats.{name}.password")))?;
                urls.insert(identity, format!("nats://{name}:{secret}@{address}"));
                logins.push((format!("JOBMESH_NATS_{}_PASSWORD", name.to_uppercase()), secret));
            }
            storage.push(nats(config, data_dir, &logs, port, &logins)?);
            // For other followers and processors.
            println!(
                "nats nats://{address}, its user is {NATS_USER}, its password is in {}",
                file.display()
            );
            (urls, admin)
        }
    };
    let clickhouse_url = match &config.clickhouse_url {
        Some(url) => url.reveal().to_owned(),
        None => {
            let listen = format!("127.0.0.1:{}", fetch::free_port()?);
            let library = fetch::libchdb()?;
            let mut olap = spec("olap", Role::Storage, &["serve", "olap", "--listen", &listen]);
            olap.arguments.extend(["--dir".into(), data_dir.join("olap").into()]);
            olap.arguments.extend(["--libchdb".into(), library.into()]);
            let (reader, _) = password(data_dir.join("olap.password"))?;
            let (writer, secret) = password(data_dir.join("olap.writer.password"))?;
            olap.arguments.extend(["--password-file".into(), reader.clone().into()]);
            olap.arguments.extend(["--writer-password-file".into(), writer.into()]);
            storage.push(olap);
            // For other people's SQL.
            println!("clickhouse http://reader@{listen}, its password is in {}", reader.display());
            let mut url: reqwest::Url = format!("http://{listen}").parse()?;
            let is_set = url.set_username("writer").and(url.set_password(Some(&secret)));
            is_set.map_err(|()| anyhow::anyhow!("{url} takes no password"))?;
            url.to_string()
        }
    };
    // URLs may hold passwords, and arguments can be read by everybody on the machine.
    let serve = |name: &str, identity: Identity, arguments: &[&str]| {
        let mut child = spec(name, Role::of(identity), arguments);
        let url = &nats_urls[&identity];
        child.environment.push(("JOBMESH_NATS_URL".into(), url.into()));
        if !has_own_nats {
            child.arguments.extend(config.login.arguments());
        }
        child
    };
    // Of a broker of our own it is known when it syncs.
    let pipelined = config.durability == Durability::Fast && has_own_nats;
    let state = ["serve", "state", "--pipelined-writes"];
    let state = &state[..if pipelined { 3 } else { 2 }];
    let states =
        (1..=config.states.max(1)).map(|n| serve(&format!("state-{n}"), Identity::State, state));
    let mut metrics = serve("metrics", Identity::Metrics, &["serve", "metrics"]);
    if config.clickhouse_url.is_none() {
        // The engine has a password of its own.
        let is_login = |name: &OsString| CLICKHOUSE_LOGIN.iter().any(|login| name == login);
        metrics.environment.retain(|(name, _)| !is_login(name));
    }
    metrics.environment.push(("JOBMESH_CLICKHOUSE_URL".into(), (&clickhouse_url).into()));
    let core: Vec<Spec> = states.chain([metrics]).collect();
    let (concurrency, grace_s) = (config.concurrency.to_string(), config.grace_s.to_string());
    let processor = ["serve", "processor", "--concurrency", &concurrency, "--grace-s", &grace_s];
    let stop_within = STOP_WITHIN + Duration::from_secs(u64::from(config.grace_s));
    let processors = (1..=config.processors).map(|n| Spec {
        stop_within,
        ..serve(&format!("processor-{n}"), Identity::Processor, &processor)
    });
    let processors = processors.collect();
    let listen = config.listen.to_string();
    let mut edge = serve("edge", Identity::Edge, &["serve", "edge", "--listen", &listen]);
    if config.require_keys {
        edge.arguments.push("--require-keys".into());
    }
    if config.insecure {
        edge.arguments.push("--insecure".into());
    }
    let mut stages = vec![storage, core, processors, vec![edge]];
    if config.metrics {
        measure(&mut stages[1..], data_dir)?;
    }
    let storage = Storage { nats: admin.into(), clickhouse: clickhouse_url.into() };
    Ok(Plan { stages, storage })
}

/// Lets services measure, and lists where: in the format of Prometheus's file-based service discovery.
fn measure(stages: &mut [Vec<Spec>], data_dir: &Path) -> anyhow::Result<()> {
    let mut targets = Vec::new();
    for child in stages.iter_mut().flatten() {
        let listen = format!("127.0.0.1:{}", fetch::free_port()?);
        child.arguments.extend(["--metrics-listen".into(), listen.clone().into()]);
        let labels = serde_json::json!({ "job": "jobmesh", "name": child.name });
        targets.push(serde_json::json!({ "targets": [listen], "labels": labels }));
    }
    let file = data_dir.join("prometheus-targets.json");
    let json = serde_json::to_vec_pretty(&targets)?;
    fs::write(&file, json).with_context(|| format!("cannot write {}", file.display()))?;
    println!("measurements for Prometheus: {}", file.display());
    Ok(())
}

/// A password that is made once, and its file, which only this user can read.
fn password(file: PathBuf) -> anyhow::Result<(PathBuf, String)> {
    let cannot_write = || format!("cannot write {}", file.display());
    match fs::read_to_string(&file) {
        Ok(password) if !password.trim().is_empty() => {
            // It may be the copy of a backup.
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&file, mode).with_context(cannot_write)?;
            return Ok((file, password.trim().to_owned()));
        }
        Ok(_) => fs::remove_file(&file).with_context(cannot_write)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    }
    let password = Secret::random(PASSWORD_CHARS)?.reveal().to_owned();
    let mut new = fs::OpenOptions::new();
    let opened = new.write(true).create_new(true).mode(0o600).open(&file);
    opened.and_then(|mut to| to.write_all(password.as_bytes())).with_context(cannot_write)?;
    Ok((file, password))
}

fn nats(
    config: &Config,
    data_dir: &Path,
    logs: &Path,
    port: u16,
    logins: &[(String, String)],
) -> anyhow::Result<Spec> {
    let conf = data_dir.join("nats.conf");
    let store = data_dir.join("nats");
    // It may be a disk of its own.
    fs::create_dir_all(&store)?;
    let monitor = SocketAddr::from((Ipv4Addr::LOCALHOST, fetch::free_port()?));
    let identities = with_users(NATS_IDENTITIES, &data_dir.join(NATS_USERS))?;
    let own = format!("# For `jobmesh dev`.\nhttp: \"{monitor}\"\n{identities}\n");
    fs::write(&conf, format!("{NATS_CONF}\n{own}"))?;
    let sync = match config.durability {
        Durability::Always => "always",
        Durability::Fast => "1s",
    };
    let mut environment = Role::Storage.environment(true);
    environment.extend([
        ("JOBMESH_NATS_LISTEN".into(), format!("\"127.0.0.1:{port}\"").into()),
        ("JOBMESH_NATS_STORE".into(), conf_string(&store)?.into()),
        ("JOBMESH_NATS_SYNC".into(), sync.into()),
    ]);
    // Digits and letters could be read as a number.
    let logins = logins.iter().map(|(name, secret)| (name.into(), format!("\"{secret}\"").into()));
    environment.extend(logins);
    Ok(Spec {
        name: "nats-server".into(),
        program: fetch::nats_server()?,
        arguments: vec!["--config".into(), conf.into()],
        environment,
        log: logs.join("nats-server.log"),
        stop_within: STOP_WITHIN,
        watched: Some(Watched { monitor, dir: store }),
    })
}

/// The identities with the users of a file, if there is one.
fn with_users(identities: &str, file: &Path) -> anyhow::Result<String> {
    let users = match fs::read_to_string(file) {
        Ok(users) => users,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(identities.into()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    };
    let (before, end) = identities.rsplit_once(']').context("the identities are a list")?;
    Ok(format!("{before}\n{users}\n]{end}"))
}

/// A path as a string of the broker's configuration, which knows few escapes.
fn conf_string(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(quoted)
}
