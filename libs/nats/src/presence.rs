//! Which services run, and which version of messages each of them knows.

use std::{collections::HashMap, time::Duration};

use async_nats::service::Info;
use futures_util::{StreamExt, stream};
use job::version;
use uuid::Uuid;

use crate::{Broker, heartbeat::Heartbeat, names};

/// How long services may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The request that all services of NATS's own protocol answer.
const SERVICES: &str = "$SRV.INFO";
/// The keys of metadata.
const INSTANCE: &str = "instance";
const MESSAGE_VERSION: &str = "message-version";
const VERSION: &str = "version";

/// A service that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Presence {
    /// What it is: state, edge, metrics or processor.
    pub service: String,
    /// The name of the process.
    pub instance: String,
    /// The version of its program.
    pub version: String,
    /// The newest version of messages that it knows; `None` if it does not say.
    pub message_version: Option<u32>,
}

/// The services could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the services could not be asked: {0}")]
pub struct Error(String);

/// What a service reports of itself, in addition to its name. NATS takes versions without a commit only.
pub fn metadata(instance: &str, program: &str) -> HashMap<String, String> {
    let pairs = [
        (INSTANCE, instance.to_owned()),
        (VERSION, program.to_owned()),
        (MESSAGE_VERSION, version::KNOWN.to_string()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

impl Broker {
    /// The services that answer within two seconds.
    ///
    /// # Errors
    /// If no request can be sent.
    pub async fn presences(&self) -> Result<Vec<Presence>, Error> {
        let failed = |error: &dyn std::error::Error| Error(error.to_string());
        // The edge may answer operators only.
        let inbox = format!("{}.{}", names::OPERATOR_INBOX, Uuid::now_v7().simple());
        let infos = self.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
        let heartbeats = self.client.subscribe(names::HEARTBEATS).await;
        let heartbeats = heartbeats.map_err(|error| failed(&error))?;
        let asked = self.client.publish_with_reply(SERVICES, inbox, "".into()).await;
        asked.map_err(|error| failed(&error))?;
        let asked = self.client.publish(names::CONTROL_HEARTBEAT_REQUEST, "".into()).await;
        asked.map_err(|error| failed(&error))?;
        let answers = stream::select(infos, heartbeats);
        let answers = answers.take_until(tokio::time::sleep(ANSWER_WITHIN));
        let mut presences: Vec<Presence> =
            answers.filter_map(async |answer| presence(&answer.payload)).collect().await;
        presences.sort();
        presences.dedup();
        Ok(presences)
    }
}

/// What an answer says; `None` if it is not of a service of Jobmesh.
fn presence(answer: &[u8]) -> Option<Presence> {
    if let Ok(heartbeat) = serde_json::from_slice::<Heartbeat>(answer) {
        return Some(Presence {
            service: "processor".to_owned(),
            instance: heartbeat.processor.to_string(),
            version: heartbeat.version.map(|version| version.to_string()).unwrap_or_default(),
            message_version: heartbeat.message_version,
        });
    }
    let info: Info = serde_json::from_slice(answer).ok()?;
    let is_ours = ["state", "edge", "metrics"].contains(&info.name.as_str());
    let instance = info.metadata.get(INSTANCE).cloned().unwrap_or(info.id);
    let message_version =
        info.metadata.get(MESSAGE_VERSION).and_then(|message_version| message_version.parse().ok());
    let version = info.metadata.get(VERSION).cloned().unwrap_or(info.version);
    let presence = Presence { service: info.name, instance, version, message_version };
    is_ours.then_some(presence)
}
