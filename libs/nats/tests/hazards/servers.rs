//! Which server of a cluster a client is connected to.

use std::time::{Duration, Instant};

use async_nats::connection::State;
use nats::{
    Broker,
    access::{Access, Login, Tls},
    names,
    publish::Message,
    topology::{self, Sizes},
};
use testkit::{Cluster, Proxy};
use tokio_util::sync::CancellationToken;

use crate::batch;

/// How long something that must happen may take: a server that was away is asked again after 20 s.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much longer the way to a far server takes, each way.
const FAR: Duration = Duration::from_millis(20);

/// Connects as services do.
async fn connect(urls: &[String]) -> anyhow::Result<Broker> {
    let access = Access::new(&urls.join(","), Login::None, Tls::default())?;
    let never = CancellationToken::new();
    let broker = Broker::connect_until(&access, "test", names::job_streams(), &never).await?;
    Ok(broker.expect("nothing stops it"))
}

fn server(broker: &Broker) -> String {
    broker.client.server_info().server_name
}

/// A proxy to each server.
async fn proxies(cluster: &Cluster) -> anyhow::Result<Vec<Proxy>> {
    let mut proxies = Vec::new();
    for node in 0..cluster.len() {
        proxies.push(Proxy::start(cluster.address(node)).await?);
    }
    Ok(proxies)
}

/// Makes the streams over a connection that nothing moves.
async fn make_streams(cluster: &Cluster) -> anyhow::Result<()> {
    let broker = Broker::connect(&cluster.address(0), "streams").await?;
    Ok(topology::ensure(&broker, Sizes::default()).await?)
}

async fn until(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !is_so()? {
        anyhow::ensure!(started.elapsed() < PATIENCE, "it never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Which server a client is connected to.
fn node_of(cluster: &Cluster, broker: &Broker) -> usize {
    let name = server(broker);
    (0..cluster.len()).find(|node| cluster.name(*node) == name).expect("it is one of them")
}

fn urls(proxies: &[Proxy]) -> Vec<String> {
    proxies.iter().map(Proxy::url).collect()
}

/// A server that answers pings but does not reach the leaders is left; the append is confirmed over another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_leaves_a_server_that_does_not_reach_the_leaders() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let proxies = proxies(&cluster).await?;
    make_streams(&cluster).await?;
    let broker = connect(&urls(&proxies)).await?;
    let before = broker.incarnation();
    let old = server(&broker);
    proxies[node_of(&cluster, &broker)].swallow_messages();
    broker.append(0, 0, batch()).await?;
    assert_ne!(server(&broker), old);
    // A processor does not take this for a restart of the broker.
    assert_eq!(broker.incarnation(), before);
    // A client that does not write leaves a server too.
    let old = server(&broker);
    proxies[node_of(&cluster, &broker)].swallow_messages();
    until("leaves a server", || Ok(server(&broker) != old)).await
}

/// A client goes to the nearest server as soon as that one answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_returns_to_the_nearest_server() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let proxies = proxies(&cluster).await?;
    let near = cluster.name(2).to_owned();
    for proxy in &proxies[..2] {
        proxy.delay(FAR);
    }
    make_streams(&cluster).await?;
    let first = connect(&urls(&proxies)).await?;
    cluster.kill(2)?;
    // No server behind it: it accepts, and closes.
    let broker = connect(&urls(&proxies)).await?;
    assert_ne!(server(&broker), near);
    cluster.restart(2)?;
    until("returns", || Ok(server(&broker) == near && server(&first) == near)).await
}

/// In lame duck mode a server has no clients left long before it closes their connections, and ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_leaves_a_server_in_lame_duck_mode() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await?;
    make_streams(&cluster).await?;
    let addresses: Vec<String> = (0..3).map(|node| cluster.address(node)).collect();
    let broker = connect(&addresses).await?;
    let old = server(&broker);
    let node = node_of(&cluster, &broker);
    let other = async_nats::connect(cluster.address(node)).await?;
    cluster.start_lame_duck(node)?;
    until("leaves a server", || Ok(server(&broker) != old)).await?;
    // The server closes connections bit by bit.
    assert_eq!(other.connection_state(), State::Connected);
    until("ends", || cluster.has_ended(node)).await?;
    let subject = names::EVENT_SUBJECT.into();
    let message = Message { subject, headers: async_nats::HeaderMap::new(), payload: batch() };
    broker.publish(message).await?;
    Ok(())
}
