//! Submitting commands: committed in groups, then answered by state.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use job::reply::Reply;
use mesh::{
    Broker,
    ask::Seen,
    commit::{Asker, Committer},
    names::Verb,
    wire::{Answered, Item},
};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Config, error::Error};

/// The verbs of clients.
const CLIENT_VERBS: [Verb; 6] =
    [Verb::Enqueue, Verb::Redo, Verb::Cancel, Verb::Retry, Verb::Project, Verb::Schedule];

type Waiting = Arc<Mutex<HashMap<Uuid, oneshot::Sender<Reply>>>>;

/// A handle to the committers of all verbs of clients. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Submitter {
    broker: Broker,
    committers: Arc<HashMap<Verb, Committer>>,
    waiting: Waiting,
    /// What clients of this edge were told of.
    pub seen: Seen,
    patience: Duration,
}

/// What became of a command that the broker has.
pub(crate) enum Submitted {
    /// State folded it.
    Folded(Reply),
    /// State did not answer yet: the command is durable and will be folded.
    Durable,
}

impl Submitter {
    /// Starts the committers and listens for replies.
    pub async fn start(config: &Config, broker: &Broker) -> anyhow::Result<Self> {
        let inbox = broker.client.new_inbox();
        let mut replies = broker.client.subscribe(inbox.clone()).await?;
        let waiting = Waiting::default();
        let seen = Seen::default();
        let (answered, heard) = (waiting.clone(), seen.clone());
        tokio::spawn(async move {
            while let Some(message) = replies.next().await {
                hand_out(&answered, &heard, &message.payload);
            }
        });
        let asker = Asker { inbox, patience: config.confirm() };
        let committers = CLIENT_VERBS.map(|verb| {
            let never = CancellationToken::new();
            (verb, Committer::start(broker.clone(), verb, Some(asker.clone()), never).0)
        });
        Ok(Self {
            broker: broker.clone(),
            committers: Arc::new(HashMap::from(committers)),
            waiting,
            seen,
            patience: config.reply(),
        })
    }

    /// Submits one command.
    ///
    /// # Errors
    /// Where the broker did not confirm it, or state refused it.
    pub async fn submit<T: Serialize>(&self, verb: Verb, ask: T) -> Result<Submitted, Error> {
        // What is published while the connection is away may land much later: better say no now.
        if !self.broker.is_connected() {
            return Err(Error::unconfirmed());
        }
        let id = Uuid::now_v7();
        let json = serde_json::to_vec(&Item { id, ask });
        let json = json.map_err(|_| Error::internal("a command is not JSON"))?;
        let committer = self.committers.get(&verb);
        let committer = committer.ok_or_else(|| Error::internal("a verb has no committer"))?;
        let (answer, answered) = oneshot::channel();
        self.lock().insert(id, answer);
        let _forget = Forget { waiting: &self.waiting, id };
        if let Err(error) = committer.commit(json).await {
            tracing::warn!(error = %error, verb = verb.name(), "command not confirmed");
            return Err(Error::unconfirmed());
        }
        match tokio::time::timeout(self.patience, answered).await {
            Ok(Ok(Reply::Refused { code, error })) => Err(Error::refused(code, error)),
            Ok(Ok(reply)) => Ok(Submitted::Folded(reply)),
            Ok(Err(_)) | Err(_) => Ok(Submitted::Durable),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Reply>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets who waited, however the wait ends.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: Uuid,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn hand_out(waiting: &Waiting, seen: &Seen, payload: &[u8]) {
    let answers: Vec<Answered> = match serde_json::from_slice(payload) {
        Ok(answers) => answers,
        Err(error) => return tracing::error!(error = %error, "replies could not be read"),
    };
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    for answer in answers {
        seen.note(answer.event);
        if let Some(waiter) = waiting.remove(&answer.id) {
            // Who has given up in this moment needs no reply.
            let _ = waiter.send(answer.reply);
        }
    }
}
