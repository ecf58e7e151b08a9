//! A broker with the logins of deploy/nats/identities.conf, and what can be asked about its streams.

use anyhow::Context;
use async_nats::jetstream::stream::Config;
use nats::{
    Broker,
    access::{Access, Login, Tls},
    names,
    topology::{self, Sizes},
};
use service::Identity;
use testkit::Nats;

/// The folder of the configurations.
pub const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats");
pub const PASSWORD: &str = "correct-horse";
/// The login that may do everything.
pub const ADMIN: &str = "jobmesh";
/// A stream that is not of Jobmesh.
pub const FOREIGN: &str = "FOREIGN";

pub const STREAMS: [&str; 14] = [
    names::AUDIT,
    names::COMMANDS,
    names::EVENTS,
    names::JOBS_STREAM,
    names::RESULTS_STREAM,
    names::REJECTED,
    "WORK_HIGH",
    "WORK_NORMAL",
    "WORK_LOW",
    "KV_leases",
    "KV_keys",
    names::FAILURES_STREAM,
    "OBJ_snapshots",
    FOREIGN,
];

/// What can be asked about a stream; `S` stands for its name.
pub const STREAM_REQUESTS: [&str; 23] = [
    "STREAM.INFO.S",
    "STREAM.CREATE.S",
    "STREAM.UPDATE.S",
    "STREAM.DELETE.S",
    "STREAM.PURGE.S",
    "STREAM.MSG.GET.S",
    "STREAM.MSG.DELETE.S",
    "STREAM.SNAPSHOT.S",
    "STREAM.RESTORE.S",
    "STREAM.LEADER.STEPDOWN.S",
    "STREAM.PEER.REMOVE.S",
    "DIRECT.GET.S",
    "DIRECT.GET.S.subject",
    "CONSUMER.CREATE.S",
    "CONSUMER.CREATE.S.c",
    "CONSUMER.DURABLE.CREATE.S.c",
    "CONSUMER.DELETE.S.c",
    "CONSUMER.INFO.S.c",
    "CONSUMER.LIST.S",
    "CONSUMER.NAMES.S",
    "CONSUMER.MSG.NEXT.S.c",
    "CONSUMER.PAUSE.S.c",
    "CONSUMER.LEADER.STEPDOWN.S.c",
];

/// The subject of a request about a stream.
pub fn on_stream(request: &str, stream: &str) -> String {
    let tokens = request.split('.').map(|token| if token == "S" { stream } else { token });
    format!("$JS.API.{}", tokens.collect::<Vec<_>>().join("."))
}

/// A connection with a login.
pub async fn connect(nats: &Nats, user: &str) -> anyhow::Result<Broker> {
    let login = Login::Password { user: user.to_owned(), password: PASSWORD.into() };
    let access = Access::new(&nats.url(), login, Tls::default())?.with_inboxes_of(user);
    Ok(Broker::connect_with(&access, user).await?)
}

/// Ends when the broker has processed what this connection sent before: each login may ask this.
pub async fn processed(broker: &Broker) -> anyhow::Result<()> {
    broker.js.query_account().await?;
    Ok(())
}

/// A broker with the logins of deploy/, and its admin; it has the streams, and one of its own with a message.
pub async fn broker_with_identities() -> anyhow::Result<(Nats, Broker)> {
    broker_with_users("").await
}

/// The same with more users.
pub async fn broker_with_users(users: &str) -> anyhow::Result<(Nats, Broker)> {
    let conf = identities()?;
    let (before, end) = conf.rsplit_once(']').context("the users are a list")?;
    let nats = Nats::start_with(&format!("{before}\n{users}\n]{end}"))?;
    let admin = connect(&nats, ADMIN).await?;
    topology::ensure(&admin, Sizes::default()).await?;
    let config =
        Config { name: FOREIGN.into(), subjects: vec!["foreign".into()], ..Config::default() };
    admin.js.create_stream(config).await?;
    admin.js.publish("foreign", "".into()).await?.await?;
    Ok((nats, admin))
}

/// The logins of deploy/, all with [`PASSWORD`].
pub fn identities() -> anyhow::Result<String> {
    let mut conf = std::fs::read_to_string(format!("{DEPLOY}/identities.conf"))?;
    let password = format!("{PASSWORD:?}");
    for identity in Identity::ALL {
        let variable = format!("$JOBMESH_NATS_{}_PASSWORD", identity.name().to_uppercase());
        assert!(conf.contains(&variable), "{variable}");
        conf = conf.replace(&variable, &password);
    }
    Ok(conf.replace("$JOBMESH_NATS_PASSWORD", &password))
}
