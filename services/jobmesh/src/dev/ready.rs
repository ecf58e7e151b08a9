//! Waits until everything is up, as the edge reports it.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;
use serde::Deserialize;

/// How long everything may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How often the edge is asked.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// How long it may take before the user is told what is waited for.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// What the edge says of those behind it.
#[derive(Deserialize)]
struct Health {
    nats: bool,
    state: bool,
    processor: bool,
    metrics: bool,
}

impl Health {
    /// The services that do not answer yet.
    fn missing(&self, needs_processors: bool) -> Vec<&'static str> {
        let services = [
            ("NATS", self.nats),
            ("state", self.state),
            ("processors", self.processor || !needs_processors),
            ("metrics", self.metrics),
        ];
        services.into_iter().filter(|(_, is_up)| !is_up).map(|(name, _)| name).collect()
    }
}

/// Waits until every service behind the edge answers; processors only where some are started.
pub(super) async fn wait(listen: &SocketAddr, processors: usize) -> anyhow::Result<()> {
    let client = outbound::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let mut reached = *listen;
    if reached.ip().is_unspecified() {
        reached.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{reached}/readyz");
    let began = tokio::time::Instant::now();
    let deadline = began + UP_WITHIN;
    let mut said = Vec::new();
    let mut last = String::from("no answer");
    while tokio::time::Instant::now() < deadline {
        let mut missing = vec!["the edge"];
        match client.get(&url).send().await {
            Ok(answer) => {
                last = answer.text().await.unwrap_or_default();
                if let Ok(health) = serde_json::from_str::<Health>(&last) {
                    missing = health.missing(processors > 0);
                }
                if missing.is_empty() {
                    return Ok(());
                }
            }
            Err(error) => last = error.without_url().to_string(),
        }
        if began.elapsed() > SAY_AFTER && missing != said {
            eprintln!("waiting for {}", missing.join(", "));
            said = missing;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    bail!("not everything came up within {} s: {last}", UP_WITHIN.as_secs())
}

#[cfg(test)]
mod tests {
    use super::Health;

    #[test]
    fn what_does_not_answer_is_named() {
        let health = Health { nats: true, state: false, processor: false, metrics: true };
        assert_eq!(health.missing(true), ["state", "processors"]);
        assert_eq!(health.missing(false), ["state"]);
    }
}
