//! From a transaction to its effects: the events are appended, and only then replies, live events
//! and hints follow. All effects may be repeated, or left out by a crash: processors and clients ask
//! again.

use std::{collections::HashMap, time::Instant};

use anyhow::Context;
use job::{
    Id, JobId, Json, Position, Run, Status, bulk::Requester, event::Change, reply::Reply,
    transaction::Commit,
};
use nats::{
    Broker,
    append::Appended,
    names,
    wire::{Answered, Stop},
};
use serde::Serialize;
use service::prometheus::Histogram;

use super::{core::Core, step_down::StepDown};
use crate::measurements;

/// Replies in one message: each may name 10,000 jobs.
const REPLIES_MAX: usize = 10;
/// Runs named in one hint to processors.
const STOP_RUNS_MAX: usize = 5_000;

/// Appends to EVENTS.
pub(super) struct EventAppender {
    broker: Broker,
    appends: Histogram,
}

impl EventAppender {
    pub fn new(broker: Broker) -> Self {
        Self { broker, appends: measurements::appends() }
    }

    /// Appends the messages of a transaction, then lets its effects follow.
    ///
    /// # Errors
    /// If the events may not be on disk: the state in memory must be discarded.
    pub async fn commit(&self, core: &mut Core, mut commit: Commit) -> Result<(), StepDown> {
        let mut messages = std::mem::take(&mut commit.messages).into_iter().peekable();
        let mut last =
            messages.peek().map_or(core.state.position().sequence, |first| first.planned - 1);
        for message in messages {
            let payload = message.payload.into();
            let started = Instant::now();
            let appended = self
                .broker
                .append_for(message.required_version, last, message.through, payload)
                .await;
            self.appends.record(started.elapsed());
            last = match appended.map_err(anyhow::Error::from)? {
                Appended::At(sequence) => sequence,
                Appended::Stale => return Err(StepDown::AppendRefused),
            };
            commit.stored(&mut core.state, last);
        }
        self.reply(std::mem::take(&mut commit.replies), last).await?;
        for (position, change) in commit.changes() {
            let subject = names::live_event(change.project, change.job, change.status);
            let body = live_event(position, &change);
            self.broker.client.publish(subject, body.into()).await.map_err(anyhow::Error::from)?;
        }
        let stop = commit.finish(&mut core.state, &mut core.scheduler);
        self.stop_runs(&stop).await?;
        Ok(())
    }

    /// Sends replies, those to one inbox together. `event` is the last message of EVENTS that they
    /// follow from.
    async fn reply(&self, replies: Vec<(Requester, Reply)>, event: u64) -> anyhow::Result<()> {
        let mut by_inbox: HashMap<String, Vec<Answered>> = HashMap::new();
        for (Requester { inbox, item: id }, reply) in replies {
            by_inbox.entry(inbox).or_default().push(Answered { id, event, reply });
        }
        for (inbox, answers) in by_inbox {
            for answers in answers.chunks(REPLIES_MAX) {
                let payload = serde_json::to_vec(answers).context("replies are JSON")?;
                let sent = self.broker.client.publish(inbox.clone(), payload.into()).await;
                // A requester without a reply learns from the edge that the command is durable.
                if let Err(error) = sent {
                    tracing::warn!(error = %error, replies = answers.len(), "not replied");
                }
            }
        }
        Ok(())
    }

    /// Lets processors know which runs to stop.
    pub async fn stop_runs(&self, runs: &[(JobId, Run)]) -> anyhow::Result<()> {
        for runs in runs.chunks(STOP_RUNS_MAX) {
            let hint = serde_json::to_vec(&Stop { runs: runs.to_vec() })?;
            self.broker.client.publish(names::CONTROL_CANCEL, hint.into()).await?;
        }
        Ok(())
    }
}

/// The body of a live event.
fn live_event(position: Position, change: &Change<'_>) -> Vec<u8> {
    let body = LiveEvent {
        position,
        job_id: change.job,
        project_id: change.project,
        batch_id: change.batch,
        status: change.status,
        run: change.run,
        worker: change.worker,
        error: change.error,
        progress: change.progress,
    };
    serde_json::to_vec(&body).expect("texts and numbers are JSON")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LiveEvent<'a> {
    position: Position,
    job_id: JobId,
    project_id: &'a Id,
    batch_id: &'a Id,
    status: Status,
    run: Run,
    worker: Option<&'a Id>,
    error: Option<&'a Id>,
    progress: Option<&'a Json>,
}
