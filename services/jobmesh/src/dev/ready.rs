//! When everything is up: the edge says so.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;

/// How long everything may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How often the edge is asked.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// Waits until every service behind the edge answers.
pub(super) async fn wait(listen: &SocketAddr) -> anyhow::Result<()> {
    // Another part of the process may have chosen first: then that choice holds.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let mut reached = *listen;
    if reached.ip().is_unspecified() {
        reached.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{reached}/readyz");
    let deadline = tokio::time::Instant::now() + UP_WITHIN;
    let mut last = String::from("no answer");
    while tokio::time::Instant::now() < deadline {
        match client.get(&url).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => last = answer.text().await.unwrap_or_default(),
            Err(error) => last = error.without_url().to_string(),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    bail!("not everything came up within {} s: {last}", UP_WITHIN.as_secs())
}
