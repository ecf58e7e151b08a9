//! Waits until everything is up, as the edge reports it.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;
use serde::Deserialize;

/// How long everything may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How often the edge is asked.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// What the edge says of those behind it.
#[derive(Deserialize)]
struct Health {
    nats: bool,
    state: bool,
    processor: bool,
    metrics: bool,
}

/// Waits until every service behind the edge answers; processors only where some are started.
pub(super) async fn wait(listen: &SocketAddr, processors: usize) -> anyhow::Result<()> {
    let client = outbound::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let mut reached = *listen;
    if reached.ip().is_unspecified() {
        reached.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{reached}/readyz");
    let deadline = tokio::time::Instant::now() + UP_WITHIN;
    let mut last = String::from("no answer");
    while tokio::time::Instant::now() < deadline {
        match client.get(&url).send().await {
            Ok(answer) => {
                last = answer.text().await.unwrap_or_default();
                let health = serde_json::from_str::<Health>(&last);
                let is_up = |health: Health| {
                    let has_processors = health.processor || processors == 0;
                    health.nats && health.state && health.metrics && has_processors
                };
                if health.is_ok_and(is_up) {
                    return Ok(());
                }
            }
            Err(error) => last = error.without_url().to_string(),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    bail!("not everything came up within {} s: {last}", UP_WITHIN.as_secs())
}
