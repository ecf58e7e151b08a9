//! The audit log: changes that were requested over HTTP, and commands of operators.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream::consumer::pull};
use job::time::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Broker, names,
    publish::{self, Message},
};

/// The durable consumer of metrics.
const CONSUMER: &str = "metrics";

/// A change that was requested over HTTP, or a command of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// The id of the record.
    pub id: Uuid,
    /// When the request was answered, in ms since 1970.
    pub at: Millis,
    /// The id of the request.
    pub request_id: String,
    /// The id of its API key, if it had one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_id: Option<String>,
    /// The name of that key at that time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_name: Option<String>,
    /// The address that it came from.
    pub address: String,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The project that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub project: Option<String>,
    /// What it changes, if the path does not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// The status of the answer.
    pub status: u16,
    /// Why, in the words of the requester.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

impl AuditRecord {
    /// A command of an operator, who needs no API key: it speaks to NATS itself.
    pub fn of_operator(command: &str, target: Option<String>, at: Millis) -> Self {
        Self {
            id: Uuid::now_v7(),
            at,
            request_id: String::new(),
            key_id: None,
            key_name: None,
            address: "NATS".to_owned(),
            method: "COMMAND".to_owned(),
            path: command.to_owned(),
            project: None,
            target,
            status: 200,
            reason: None,
        }
    }
}

impl Broker {
    /// Stores a record. It reaches ClickHouse shortly after.
    ///
    /// # Errors
    /// If the broker does not store it, or that is unknown.
    pub async fn store_audit_record(&self, record: &AuditRecord) -> Result<(), publish::Error> {
        let payload = serde_json::to_vec(record).expect("texts and numbers are JSON");
        let subject = names::AUDIT_SUBJECT.into();
        // A repeat within the broker's window for duplicates is stored once.
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, record.id.to_string());
        let message = Message { subject, headers, payload: payload.into() };
        self.publish(message).await.map(|_| ())
    }

    /// The consumer with which metrics reads the records.
    ///
    /// # Errors
    /// If the consumer cannot be made.
    pub async fn audit_consumer(
        &self,
    ) -> Result<async_nats::jetstream::consumer::PullConsumer, async_nats::Error> {
        let config = pull::Config { durable_name: Some(CONSUMER.to_owned()), ..Default::default() };
        Ok(self.js.create_consumer_on_stream(config, names::AUDIT).await?)
    }
}
