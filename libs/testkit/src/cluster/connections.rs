//! The connections of the servers of a cluster.

use std::time::Duration;

use anyhow::ensure;
use async_nats::Client;
use futures_util::StreamExt;
use serde::Deserialize;

/// How often the servers are asked for their connections.
const LIST_ATTEMPTS: usize = 10;
/// How long the servers have to list their connections.
const LIST_WITHIN: Duration = Duration::from_millis(300);

/// A connection as a server lists it.
#[derive(Deserialize)]
pub(super) struct Connection {
    pub cid: u64,
    #[serde(default)]
    pub name: String,
}

#[derive(Deserialize)]
pub(super) struct Listed {
    pub server: ServerId,
    pub data: Connections,
}

#[derive(Deserialize)]
pub(super) struct ServerId {
    pub id: String,
}

#[derive(Deserialize)]
pub(super) struct Connections {
    #[serde(default)]
    pub connections: Vec<Connection>,
}

/// The connections of each of a number of servers.
pub(super) async fn list(client: &Client, servers: usize) -> anyhow::Result<Vec<Listed>> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let request = r#"{"limit": 1024}"#;
    let mut listed = Vec::new();
    // A busy machine may take longer.
    for _ in 0..LIST_ATTEMPTS {
        let to = inbox.clone();
        client.publish_with_reply("$SYS.REQ.SERVER.PING.CONNZ", to, request.into()).await?;
        while listed.len() < servers {
            let answer = tokio::time::timeout(LIST_WITHIN, answers.next()).await;
            let Ok(Some(answer)) = answer else { break };
            listed.push(serde_json::from_slice(&answer.payload)?);
        }
        if !listed.is_empty() {
            break;
        }
    }
    ensure!(!listed.is_empty(), "no server lists its connections");
    Ok(listed)
}
