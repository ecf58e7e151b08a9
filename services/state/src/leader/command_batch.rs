//! Messages of COMMANDS, read and bounded: what one transaction processes.

use bytes::Bytes;
use job::{State, bulk::Requester, command::Command, time::Millis};
use nats::{
    names,
    rejected::Rejected,
    run_tokens::RunTokens,
    stream_reader::{self, StreamReader},
    wire::{self, Malformed},
};
use uuid::Uuid;

/// The most messages of one batch.
const MESSAGES_MAX: usize = 256;
/// The most bytes of one batch, unless a single message has more.
const BYTES_MAX: usize = 8_000_000;

/// A message of COMMANDS.
pub(super) struct CommandMessage {
    /// Its sequence in COMMANDS.
    pub sequence: u64,
    /// The id that its publisher gave it: a repeat has the same.
    pub id: Option<Uuid>,
    /// Its commands.
    pub items: Result<Vec<Item>, Malformed>,
    /// Deleted messages right before this one.
    skipped: u64,
    subject: String,
    payload: Bytes,
    stored_at: Millis,
    inbox: Option<String>,
    deadline: Option<Millis>,
}

/// One command of a message.
pub(super) struct Item {
    /// Its own id, by which it is answered.
    pub id: Uuid,
    /// The command, or why it is refused: which bound it exceeds, or that its sender was not given the run.
    pub command: Result<Command, String>,
}

impl CommandMessage {
    pub fn read(message: stream_reader::Message) -> Self {
        let header = |name: &str| {
            let value = message.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned())
        };
        let headers = message.headers.as_ref();
        let items = wire::commands(message.sequence, &message.subject, headers, &message.payload);
        let bounded =
            |item: wire::Item<Command>| Item { id: item.id, command: item.command.bounded() };
        Self {
            sequence: message.sequence,
            skipped: message.skipped,
            stored_at: message.at,
            id: header("Nats-Msg-Id").and_then(|id| id.parse().ok()),
            inbox: header(names::REPLY),
            deadline: header(names::DEADLINE).and_then(|at| at.parse().ok()),
            items: items.map(|items| items.into_iter().map(bounded).collect()),
            subject: message.subject,
            payload: message.payload,
        }
    }

    /// The message with the reason why it, or one of its commands, cannot be processed.
    pub fn rejected(&self, reason: String) -> Rejected {
        Rejected {
            stream: names::COMMANDS,
            sequence: self.sequence,
            subject: self.subject.clone(),
            reason,
            payload: self.payload.clone(),
        }
    }

    /// The requester of an item, which receives its reply.
    pub fn requester(&self, item: &Item) -> Option<Requester> {
        self.inbox.clone().map(|inbox| Requester { inbox, item: item.id })
    }

    /// True if the publisher had stopped waiting before the broker stored the message.
    pub fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.stored_at > deadline)
    }

    /// Checks that the stream has no message from `expected` on that comes before this one.
    ///
    /// # Errors
    /// If messages in between are in the stream and were not processed.
    pub fn follows(&self, expected: u64) -> anyhow::Result<()> {
        if self.sequence <= expected {
            return Ok(());
        }
        let (from, to) = (expected, self.sequence - 1);
        anyhow::ensure!(
            self.skipped > to - from,
            "COMMANDS {from} to {to} are in the stream and were not processed"
        );
        tracing::error!(
            from,
            to,
            "messages of COMMANDS were purged or deleted before they were processed: their \
             requests are lost"
        );
        Ok(())
    }
}

/// Messages that are processed together.
pub(super) struct CommandBatch {
    pub messages: Vec<CommandMessage>,
    pub bytes: usize,
}

impl CommandBatch {
    /// `first` and the messages that have arrived behind it, bounded in number and bytes.
    pub fn collect(first: stream_reader::Message, commands: &mut StreamReader) -> Self {
        let mut bytes = first.payload.len();
        let mut messages = vec![CommandMessage::read(first)];
        while messages.len() < MESSAGES_MAX && bytes < BYTES_MAX {
            let Some(message) = commands.try_recv() else { break };
            bytes += message.payload.len();
            messages.push(CommandMessage::read(message));
        }
        Self { messages, bytes }
    }

    /// Refuses reports on runs that their sender was not given.
    pub fn check_reports(&mut self, tokens: &RunTokens, state: &State, missing_allowed: bool) {
        let items = self.messages.iter_mut().filter_map(|message| message.items.as_mut().ok());
        for item in items.flatten() {
            let report = item.command.as_ref().ok().and_then(Command::run_report);
            let checked = report.map(|report| tokens.check(state, report, missing_allowed));
            if let Some(Err(why)) = checked {
                item.command = Err(why);
            }
        }
    }

    /// The commands of all messages.
    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        let items = self.messages.iter().filter_map(|message| message.items.as_ref().ok());
        items.flatten().filter_map(|item| item.command.as_ref().ok())
    }
}
