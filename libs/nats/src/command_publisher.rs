//! Group commit: while one publish is in flight, what comes in gathers for the next.
//!
//! An acked message costs the broker the same whether it carries one item or five hundred, and
//! one fsync. No timer is involved: at low load an item goes at once, alone.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use job::time::Millis;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Broker,
    names::{self, Verb},
    publish::{self, ACK_TIMEOUT, Attempts, FIRST_ACK_TIMEOUT, Message, REPEAT_PAUSE, SMALL_BYTES},
};

/// The most bytes of one message of commands: below the broker's `max_payload` of 8 MB, with
/// room for the events that come of it.
const MESSAGE_BYTES_MAX: usize = 6_000_000;
/// The most items of one message.
const MESSAGE_ITEMS_MAX: usize = 2_000;
/// Items that wait to be taken up, beyond which those who send them wait as well.
const QUEUE_ITEMS_MAX: usize = 4_096;

/// The most time between the oldest and the newest item of a message of requesters: all of them end with the deadline of
/// the oldest.
const SPREAD_MAX: Duration = Duration::from_millis(500);

/// Why an item is not on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The broker refused it.
    #[error(transparent)]
    Refused(#[from] std::sync::Arc<publish::Error>),
    /// The time for it ran out; it may be stored or not, and is ignored if it is stored late.
    #[error("the broker did not confirm in time")]
    TimedOut,
    /// The publisher has stopped.
    #[error("the service stops")]
    Stopped,
}

/// The reply subject, and how long requesters wait.
#[derive(Clone, Debug)]
pub struct ReplyTo {
    /// The inbox for replies.
    pub inbox: String,
    /// How long a message may wait for its ack before its items are given up.
    pub patience: Duration,
}

/// A cheap handle to one verb's publisher.
#[derive(Clone, Debug)]
pub struct CommandPublisher {
    items: mpsc::Sender<Entry>,
}

/// Told once what became of an item.
type Done = Box<dyn FnOnce(Result<u64, Error>) + Send>;

struct Entry {
    json: Vec<u8>,
    submitted_at: Instant,
    done: Done,
}

impl CommandPublisher {
    /// Starts the publisher of `verb`. With an `asker`, messages carry its inbox and a deadline;
    /// without one they are repeated until the broker has them or `stop` is done.
    pub fn start(
        broker: Broker,
        verb: Verb,
        asker: Option<ReplyTo>,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (items, queue) = mpsc::channel(QUEUE_ITEMS_MAX);
        let committing = Loop { broker, verb, asker, stop, unanswered: None };
        (Self { items }, tokio::spawn(committing.run(queue)))
    }

    /// Commits one item, given as JSON of a [`wire::Item`](crate::wire::Item). Returns the
    /// sequence of its message in COMMANDS once the broker has it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn commit(&self, json: Vec<u8>) -> Result<u64, Error> {
        let (done, receipt) = oneshot::channel();
        // One who has stopped waiting is no error.
        let done = move |end| drop(done.send(end));
        self.commit_then(json, Instant::now(), done).await?;
        receipt.await.map_err(|_| Error::Stopped)?
    }

    /// Hands in one item, whose requester waits since `submitted_at`. `done` gets what [`commit`](Self::commit) would
    /// return, which costs less than waking a task.
    ///
    /// # Errors
    /// [`Error::Stopped`]; `done` is not called then.
    pub async fn commit_then(
        &self,
        json: Vec<u8>,
        submitted_at: Instant,
        done: impl FnOnce(Result<u64, Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let entry = Entry { json, submitted_at, done: Box::new(done) };
        self.items.send(entry).await.map_err(|_| Error::Stopped)
    }
}

/// When the items of a message were submitted. They do not come in this order if requests have waited for a connection.
#[derive(Clone, Copy)]
struct Times {
    oldest: Instant,
    newest: Instant,
}

impl Times {
    fn with(self, at: Instant) -> Self {
        Self { oldest: self.oldest.min(at), newest: self.newest.max(at) }
    }

    fn spread(self) -> Duration {
        self.newest - self.oldest
    }
}

struct Loop {
    broker: Broker,
    verb: Verb,
    asker: Option<ReplyTo>,
    stop: CancellationToken,
    /// When the broker did not answer for the first and the last time in a row.
    unanswered: Option<(Instant, Instant)>,
}

impl Loop {
    async fn run(mut self, mut queue: mpsc::Receiver<Entry>) {
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(entry) => entry,
                None => match queue.recv().await {
                    Some(entry) => entry,
                    None => return,
                },
            };
            let Some(first) = self.in_time(first) else { continue };
            let mut times = Times { oldest: first.submitted_at, newest: first.submitted_at };
            // Most messages have one item, which can have megabytes: the closing bracket must not
            // make the buffer grow.
            let mut payload = Vec::with_capacity(first.json.len() + 2);
            payload.push(b'[');
            payload.extend_from_slice(&first.json);
            let mut waiters = vec![first.done];
            while waiters.len() < MESSAGE_ITEMS_MAX {
                let Ok(next) = queue.try_recv() else { break };
                let Some(next) = self.in_time(next) else { continue };
                let with_next = times.with(next.submitted_at);
                let is_late = self.asker.is_some() && with_next.spread() > SPREAD_MAX;
                if is_late || payload.len() + next.json.len() + 2 > MESSAGE_BYTES_MAX {
                    carried = Some(next);
                    break;
                }
                times = with_next;
                payload.push(b',');
                payload.extend_from_slice(&next.json);
                waiters.push(next.done);
            }
            payload.push(b']');
            let outcome = self.publish(payload.into(), times.oldest).await;
            for waiter in waiters {
                waiter(outcome.clone());
            }
        }
    }

    /// The item, unless its requester has stopped waiting: messages before it may have taken long.
    fn in_time(&self, entry: Entry) -> Option<Entry> {
        let patience = self.asker.as_ref().map(|asker| asker.patience);
        if patience.is_none_or(|patience| entry.submitted_at.elapsed() < patience) {
            return Some(entry);
        }
        (entry.done)(Err(Error::TimedOut));
        None
    }

    /// Publishes one message, again under the same id while its fate is unknown. Its oldest item was submitted at
    /// `submitted_at`.
    async fn publish(
        &mut self,
        payload: bytes::Bytes,
        submitted_at: Instant,
    ) -> Result<u64, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, Uuid::now_v7().to_string());
        headers.insert(names::REQUIRED_VERSION, self.verb.required_version().to_string());
        let until = self.asker.as_ref().map(|asker| {
            let left = asker.patience.saturating_sub(submitted_at.elapsed());
            let left_ms = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
            headers.insert(names::REPLY, asker.inbox.as_str());
            headers.insert(names::DEADLINE, (now_ms() + left_ms).to_string());
            tokio::time::Instant::now() + left
        });
        let is_small = payload.len() <= SMALL_BYTES;
        let mut attempts = Attempts::within(if is_small { FIRST_ACK_TIMEOUT } else { ACK_TIMEOUT });
        loop {
            let message = Message {
                subject: self.verb.subject(),
                headers: headers.clone(),
                payload: payload.clone(),
            };
            let attempt = self.broker.publish_within(message, attempts.next_patience());
            let answer = match until {
                None => attempt.await,
                Some(until) => match tokio::time::timeout_at(until, attempt).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.note_unanswered().await;
                        return Err(Error::TimedOut);
                    }
                },
            };
            let error = match answer {
                Ok(ack) => {
                    self.unanswered = None;
                    return Ok(ack.sequence);
                }
                Err(error) => error,
            };
            match error {
                publish::Error::Unanswered { .. } => self.note_unanswered().await,
                publish::Error::Refused { .. } => self.unanswered = None,
                _ => {}
            }
            // Requesters that wait for a reply are notified of a refusal; a processor's report is
            // published until it succeeds.
            if until.is_some() && !error.may_pass() {
                return Err(Error::Refused(error.into()));
            }
            tracing::warn!(error = %error, verb = self.verb.name(), "not committed yet, trying again");
            tokio::select! {
                () = self.stop.cancelled(), if until.is_none() => return Err(Error::Stopped),
                () = tokio::time::sleep(REPEAT_PAUSE) => {}
            }
        }
    }

    /// Reports a broker that has not answered for a while.
    async fn note_unanswered(&mut self) {
        let now = Instant::now();
        // Requests that stayed unanswered long ago do not count.
        let is_in_row = |(_, last): &(Instant, Instant)| last.elapsed() <= 2 * ACK_TIMEOUT;
        let since = self.unanswered.filter(is_in_row).map_or(now, |(since, _)| since);
        self.unanswered = Some((since, now));
        if since.elapsed() > ACK_TIMEOUT {
            self.broker.report_unstored(&self.verb.subject()).await;
        }
    }
}

fn now_ms() -> Millis {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_a_message_have_the_deadline_of_the_oldest() {
        let at = Instant::now();
        let after = |ms| at + Duration::from_millis(ms);
        let first = Times { oldest: after(500), newest: after(500) };
        let all = first.with(after(700)).with(after(100));
        assert_eq!((all.oldest, all.spread()), (after(100), Duration::from_millis(600)));
    }
}
