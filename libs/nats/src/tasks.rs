//! The tasks that services run in the background, and their last results. Each process answers for its own.

use std::time::Duration;

use futures_util::StreamExt;
use job::time::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Broker, names};

/// How long services may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Answers that are read: no mesh has more processes.
const ANSWERS_MAX: usize = 1_000;
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What a process reports of its background tasks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessTasks {
    /// What it is: state, edge or metrics. Processors send heartbeats instead.
    pub service: String,
    /// The name of the process.
    pub instance: String,
    /// Its tasks, by name.
    pub tasks: Vec<TaskReport>,
}

/// A background task since the start of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskReport {
    /// Its name, which no other task of the process has.
    pub task: String,
    /// How often it has succeeded.
    pub succeeded: u64,
    /// How often it has failed.
    pub failed: u64,
    /// When it last succeeded or failed; `None` if it has done neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Millis>,
    /// Why it failed, if it did so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// No request can be sent.
#[derive(Debug, thiserror::Error)]
#[error("services were not asked for their tasks: there is no connection to NATS")]
pub struct Error;

impl Broker {
    /// Answers each request for background tasks with what `report` returns, until the connection ends.
    ///
    /// # Errors
    /// If requests cannot be received.
    pub async fn report_tasks(
        &self,
        report: impl Fn() -> ProcessTasks + Send + 'static,
    ) -> Result<(), async_nats::SubscribeError> {
        let mut requests = self.client.subscribe(names::TASKS).await?;
        let client = self.client.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let Some(inbox) = request.reply else { continue };
                let answer = serde_json::to_vec(&report()).expect("texts and numbers are JSON");
                // The requester may have disconnected.
                let _ = client.publish(inbox, answer.into()).await;
            }
        });
        Ok(())
    }

    /// The background tasks of the processes that answer within half a second, by service and instance.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn tasks(&self) -> Result<Vec<ProcessTasks>, Error> {
        let inbox = format!("{}.{}", names::TASKS_INBOX, Uuid::now_v7().simple());
        // Without a connection a request would wait for one.
        if !self.is_connected() {
            return Err(Error);
        }
        let answers = self.client.subscribe(inbox.clone()).await.map_err(|_| Error)?;
        let asked = self.client.publish_with_reply(names::TASKS, inbox, "".into()).await;
        asked.map_err(|_| Error)?;
        let answers = answers.take(ANSWERS_MAX).take_until(tokio::time::sleep(ANSWER_WITHIN));
        let read = answers.filter_map(async |answer| {
            let is_short = answer.payload.len() <= ANSWER_BYTES_MAX;
            is_short.then(|| serde_json::from_slice(&answer.payload).ok()).flatten()
        });
        let mut processes: Vec<ProcessTasks> = read.collect().await;
        processes.sort();
        Ok(processes)
    }
}
