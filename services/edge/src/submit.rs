//! Submitting commands: committed in groups, then answered by state.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use job::reply::Reply;
use nats::{
    Broker,
    command_publisher::{CommandPublisher, ReplyTo},
    names::Verb,
    query::ReadToken,
    wire::{Answered, Item},
};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Config, error::Error};

/// The verbs of clients.
const CLIENT_VERBS: [Verb; 8] = [
    Verb::Enqueue,
    Verb::Redo,
    Verb::Cancel,
    Verb::Retry,
    Verb::Project,
    Verb::Schedule,
    Verb::Operation,
    Verb::Update,
];

type Waiting = Arc<Mutex<HashMap<Uuid, oneshot::Sender<Received>>>>;

/// A handle to the publishers of all verbs of clients. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Submitter {
    broker: Broker,
    publishers: Arc<HashMap<Verb, CommandPublisher>>,
    waiting: Waiting,
    /// What clients of this edge have seen.
    pub seen: ReadToken,
    /// How long the broker may take to confirm a command.
    confirm: Duration,
    /// How long a request waits for the reply of state.
    patience: Duration,
}

/// The reply to a command.
enum Received {
    /// State processed it.
    Reply(Reply),
    /// The broker did not take it, as far as is known.
    NotStored(nats::command_publisher::Error),
}

/// What became of a command that the broker has.
pub(crate) enum Submitted {
    /// State processed it.
    Processed(Reply),
    /// State did not answer yet: the command is durable and will be processed.
    Durable,
}

impl Submitter {
    /// Starts the publishers and listens for replies.
    pub async fn start(config: &Config, broker: &Broker) -> anyhow::Result<Self> {
        let inbox = broker.client.new_inbox();
        let mut replies = broker.client.subscribe(inbox.clone()).await?;
        let waiting = Waiting::default();
        let seen = ReadToken::default();
        let (answered, received) = (waiting.clone(), seen.clone());
        tokio::spawn(async move {
            while let Some(message) = replies.next().await {
                deliver_replies(&answered, &received, &message.payload);
            }
        });
        let asker = ReplyTo { inbox, patience: config.confirm() };
        let publishers = CLIENT_VERBS.map(|verb| {
            let never = CancellationToken::new();
            (verb, CommandPublisher::start(broker.clone(), verb, Some(asker.clone()), never).0)
        });
        Ok(Self {
            broker: broker.clone(),
            publishers: Arc::new(HashMap::from(publishers)),
            waiting,
            seen,
            confirm: config.confirm(),
            patience: config.reply(),
        })
    }

    /// Submits one command.
    ///
    /// # Errors
    /// If the broker did not confirm it, or state refused it.
    pub async fn submit<T: Serialize>(&self, verb: Verb, command: T) -> Result<Submitted, Error> {
        let began = Instant::now();
        // A message published without a connection could arrive much later. Another server takes one within a moment.
        if !self.broker.until_connected(self.confirm).await {
            return Err(Error::unconfirmed());
        }
        let id = Uuid::now_v7();
        let json = serde_json::to_vec(&Item { id, command });
        let json = json.map_err(|_| Error::internal("a command is not JSON"))?;
        let publisher = self.publishers.get(&verb);
        let publisher = publisher.ok_or_else(|| Error::internal("a verb has no publisher"))?;
        let not_confirmed = |error| {
            tracing::warn!(error = %error, verb = verb.name(), "command not confirmed");
            Error::unconfirmed()
        };
        let (answer, mut answered) = oneshot::channel();
        lock(&self.waiting).insert(id, answer);
        let _pending = PendingGuard { waiting: &self.waiting, id };
        // A reply implies that the broker has the command, so its ack need not wake the request.
        let (stored, is_stored) = oneshot::channel();
        let waiting = self.waiting.clone();
        let done = move |end| match end {
            Ok(_) => drop(stored.send(())),
            Err(error) => notify(&waiting, id, Received::NotStored(error)),
        };
        publisher.commit_then(json, began, done).await.map_err(not_confirmed)?;
        let reply_by = (began + self.patience).into();
        let received = match tokio::time::timeout_at(reply_by, &mut answered).await {
            Ok(received) => received.ok(),
            Err(_) => tokio::select! {
                biased;
                received = answered => received.ok(),
                stored = is_stored => match stored {
                    Ok(()) => None,
                    Err(_) => Some(Received::NotStored(nats::command_publisher::Error::Stopped)),
                },
            },
        };
        match received {
            Some(Received::Reply(Reply::Refused { code, error, retry_after_s })) => {
                Err(Error::refused(code, error).retry_after(retry_after_s))
            }
            Some(Received::Reply(reply)) => Ok(Submitted::Processed(reply)),
            Some(Received::NotStored(error)) => Err(not_confirmed(error)),
            None => Ok(Submitted::Durable),
        }
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Received>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn notify(waiting: &Waiting, id: Uuid, received: Received) {
    if let Some(waiter) = lock(waiting).remove(&id) {
        // The requester may have given up meanwhile.
        let _ = waiter.send(received);
    }
}

/// Removes the entry of a request that waits for a reply, however the wait ends.
struct PendingGuard<'a> {
    waiting: &'a Waiting,
    id: Uuid,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(&self.id);
    }
}

fn deliver_replies(waiting: &Waiting, seen: &ReadToken, payload: &[u8]) {
    let answers: Vec<Answered> = match serde_json::from_slice(payload) {
        Ok(answers) => answers,
        Err(error) => return tracing::error!(error = %error, "replies could not be read"),
    };
    for answer in answers {
        seen.note(answer.event);
        notify(waiting, answer.id, Received::Reply(answer.reply));
    }
}
