//! What NATS reports of the streams of a cluster.

use std::time::{Duration, Instant};

use anyhow::ensure;
use async_nats::Client;

use super::READY_WITHIN;

/// The names of all streams, once the cluster has a leader.
pub(super) async fn stream_names(client: &Client) -> anyhow::Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        // The cluster may have no leader yet, or lose it now.
        let last = match client.request("$JS.API.STREAM.NAMES", "".into()).await {
            Ok(answer) => {
                let answer: serde_json::Value = serde_json::from_slice(&answer.payload)?;
                if let Some(names) = answer["streams"].as_array() {
                    let names = names.iter().filter_map(|name| name.as_str());
                    return Ok(names.map(str::to_owned).collect());
                }
                answer.to_string()
            }
            Err(error) => error.to_string(),
        };
        ensure!(begun.elapsed() < READY_WITHIN, "the streams are not listed: {last}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The name of the server that leads a stream.
pub(super) async fn leader_of(client: &Client, stream: &str) -> anyhow::Result<Option<String>> {
    let info = info_of(client, stream).await?;
    Ok(info["cluster"]["leader"].as_str().map(str::to_owned))
}

/// Whether all copies of a stream are there and up to date; what NATS reports of them if not.
pub(super) async fn are_current(
    client: &Client,
    stream: &str,
) -> anyhow::Result<Result<(), String>> {
    let info = info_of(client, stream).await?;
    let copies = info["cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    let current = copies.iter().filter(|copy| copy["current"] == true && copy["offline"] != true);
    let wanted = info["config"]["num_replicas"].as_u64();
    let are_current = wanted.is_some_and(|wanted| current.count() as u64 + 1 == wanted);
    Ok(if are_current { Ok(()) } else { Err(info["cluster"].to_string()) })
}

/// What NATS reports of a stream; nothing while no server leads it.
async fn info_of(client: &Client, stream: &str) -> anyhow::Result<serde_json::Value> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let Ok(answer) = client.request(subject, "".into()).await else {
        return Ok(serde_json::Value::Null);
    };
    Ok(serde_json::from_slice(&answer.payload)?)
}
