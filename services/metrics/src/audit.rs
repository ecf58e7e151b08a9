//! The audit log in ClickHouse: it is read from the stream AUDIT, inserted and queried.
//!
//! The position in the stream is that of a durable consumer. A record can be inserted again after a failure: the table
//! keeps one of each id.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::{Message, consumer::pull};
use clickhouse::{Client, Row};
use futures_util::{FutureExt, StreamExt};
use job::time::Millis;
use nats::{
    Broker,
    audit::AuditRecord,
    query::{AuditAnswer, AuditQuery},
};
use serde::{Deserialize, Serialize};
use service::BackgroundTask;
use uuid::Uuid;

/// Reads the records of the audit log.
pub(crate) const INGESTION: BackgroundTask = BackgroundTask::new("audit ingestion");
/// Inserts them.
pub(crate) const RECORDS: BackgroundTask = BackgroundTask::new("audit log");
/// Records that are inserted at once.
const RECORDS_MAX: usize = 500;
/// How long ClickHouse may take for an insert.
const INSERT_TIMEOUT: Duration = Duration::from_secs(30);
/// The last time of a column, in ms since 1970: the year 2200.
const LAST_TIME: Millis = 7_258_118_400_000;
/// How long a pull waits, and how often the broker shows that it is there.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A row of `audit`. Absent texts are empty.
#[derive(Debug, Row, Serialize, Deserialize)]
struct AuditRow {
    #[serde(with = "clickhouse::serde::uuid")]
    id: Uuid,
    at: Millis,
    request_id: String,
    key_id: String,
    key_name: String,
    address: String,
    method: String,
    path: String,
    project: String,
    target: String,
    status: u16,
    reason: String,
}

impl From<AuditRecord> for AuditRow {
    fn from(record: AuditRecord) -> Self {
        Self {
            id: record.id,
            at: record.at,
            request_id: record.request_id,
            key_id: record.key_id.unwrap_or_default(),
            key_name: record.key_name.unwrap_or_default(),
            address: record.address,
            method: record.method,
            path: record.path,
            project: record.project.unwrap_or_default(),
            target: record.target.unwrap_or_default(),
            status: record.status,
            reason: record.reason.unwrap_or_default(),
        }
    }
}

impl From<AuditRow> for AuditRecord {
    fn from(row: AuditRow) -> Self {
        let present = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            id: row.id,
            at: row.at,
            request_id: row.request_id,
            key_id: present(row.key_id),
            key_name: present(row.key_name),
            address: row.address,
            method: row.method,
            path: row.path,
            project: present(row.project),
            target: present(row.target),
            status: row.status,
            reason: present(row.reason),
        }
    }
}

/// Takes in records until something fails.
pub(crate) async fn ingest(broker: &Broker, client: &Client) -> anyhow::Result<()> {
    let mut messages = open(broker).await.inspect_err(|error| INGESTION.failed(error))?;
    loop {
        let read = next_block(&mut messages).await;
        INGESTION.note(&read);
        let block = read?;
        let inserted = insert_and_ack(client, block).await;
        RECORDS.note(&inserted);
        inserted?;
    }
}

async fn open(broker: &Broker) -> anyhow::Result<pull::Stream> {
    let consumer = broker.audit_consumer().await.map_err(|error| anyhow::anyhow!(error))?;
    let messages = consumer.stream().max_messages_per_batch(RECORDS_MAX).heartbeat(HEARTBEAT);
    Ok(messages.expires(PULL_EXPIRES).messages().await?)
}

/// Waits for a record, and takes those that have arrived with it.
async fn next_block(messages: &mut pull::Stream) -> anyhow::Result<Vec<Message>> {
    let first = INGESTION.wait_for(messages.next()).await;
    let first = first.context("the consumer of the audit log ended")?;
    let mut block = vec![first?];
    while block.len() < RECORDS_MAX
        && let Some(Some(next)) = messages.next().now_or_never()
    {
        block.push(next?);
    }
    Ok(block)
}

async fn insert_and_ack(client: &Client, block: Vec<Message>) -> anyhow::Result<()> {
    insert(client, &block).await?;
    for message in block {
        message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}

async fn insert(client: &Client, messages: &[Message]) -> anyhow::Result<()> {
    let insert = client.insert::<AuditRow>("audit").await?;
    let mut insert = insert.with_timeouts(Some(INSERT_TIMEOUT), Some(INSERT_TIMEOUT));
    for message in messages {
        match serde_json::from_slice::<AuditRecord>(&message.payload) {
            Ok(record) => insert.write(&record.into()).await?,
            Err(error) => tracing::error!(%error, "a record of the audit log cannot be read"),
        }
    }
    Ok(insert.end().await?)
}

/// The last records that a query selects.
pub(crate) async fn answer(client: &Client, ask: AuditQuery) -> anyhow::Result<AuditAnswer> {
    let sql = format!(
        "SELECT id, toUnixTimestamp64Milli(records.at) AS at, request_id, key_id, key_name, address,
            toString(method) AS method, path, project, target, status, reason
        FROM audit AS records FINAL
        WHERE records.at <= fromUnixTimestamp64Milli({{at:Int64}})
            AND (toUnixTimestamp64Milli(records.at), id) < ({{at:Int64}}, {{id:UUID}})
            AND ({{project:String}} = '' OR project = {{project:String}})
            AND ({{key:String}} = '' OR key_id = {{key:String}})
        ORDER BY records.at DESC, id DESC LIMIT {}",
        ask.limit + 1
    );
    let (at, id) = ask.before.unwrap_or((LAST_TIME, Uuid::max()));
    let query = client
        .query_raw(&sql)
        .param("at", at)
        .param("id", id.to_string())
        .param("project", ask.project.unwrap_or_default())
        .param("key", ask.key.unwrap_or_default());
    let mut rows: Vec<AuditRow> = query.fetch_all().await?;
    let has_more = rows.len() > ask.limit;
    rows.truncate(ask.limit);
    let next = rows.last().map(|row| (row.at, row.id)).filter(|_| has_more);
    Ok(AuditAnswer { records: rows.into_iter().map(AuditRecord::from).collect(), next })
}
