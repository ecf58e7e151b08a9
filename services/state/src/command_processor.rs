//! From messages of COMMANDS to events on disk, and what follows from them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use job::{
    Id, JobId, Json, Lookups, Missing, Position, Run, Status,
    bulk::Requester,
    command::{Command, Outcome},
    event::{Event, Transition},
    reply::{Code, Reply},
    time::Millis,
};
use mesh::{
    Broker,
    append::Appended,
    names,
    rejected::Rejected,
    stream_reader,
    wire::{self, Answered, Item, Malformed, Stop},
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    event_batch::{Packed, Packer},
    leader::{Done, Leader},
};

/// Reads of the bucket at the same time.
const READS_MAX: usize = 64;
/// Replies in one message: each may name 10,000 jobs.
const REPLIES_MAX: usize = 10;
/// Schedules fired at once.
const FIRE_MAX: usize = 1_000;
/// Events of bulk operations that are appended at once, but for those of the last slice.
const SLICES_EVENTS_MAX: usize = 500;
/// How long to wait after jobs of a bulk operation could not be read.
const BULK_READ_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
/// Runs named in one hint to processors.
const STOP_RUNS_MAX: usize = 5_000;

/// A message of COMMANDS, read.
struct CommandMessage {
    sequence: u64,
    skipped: u64,
    subject: String,
    payload: Bytes,
    at: Millis,
    message: Option<Uuid>,
    inbox: Option<String>,
    deadline: Option<Millis>,
    items: Result<Vec<Item<Command>>, Malformed>,
}

/// What was read for the next slice of a bulk operation.
#[derive(Default)]
pub(crate) struct BulkReads {
    lookups: Lookups,
    /// True while more is being read.
    pub is_reading: bool,
    /// Jobs that changed since that began.
    changed: HashSet<JobId>,
}

impl BulkReads {
    /// Forgets what an event has made outdated: ended jobs that memory had evicted.
    fn note(&mut self, event: &Event) {
        let job = match event {
            Event::Retried(revived) => revived.job.id,
            Event::Refused(refused) => match &refused.ended {
                Some(late) => late.job,
                None => return,
            },
            _ => return,
        };
        self.lookups.jobs.remove(&job);
        if self.is_reading {
            self.changed.insert(job);
        }
    }
}

/// Effects that follow when the events are on disk.
#[derive(Default)]
struct Effects {
    replies: HashMap<String, Vec<(Uuid, Reply)>>,
    stale: Vec<(JobId, Run)>,
    rejected: Vec<Rejected>,
}

impl CommandMessage {
    fn read(message: stream_reader::Message) -> Self {
        let header = |name: &str| {
            let value = message.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned())
        };
        Self {
            sequence: message.sequence,
            skipped: message.skipped,
            at: message.at,
            message: header("Nats-Msg-Id").and_then(|id| id.parse().ok()),
            inbox: header(names::REPLY),
            deadline: header(names::DEADLINE).and_then(|at| at.parse().ok()),
            items: wire::commands(&message.subject, &message.payload),
            subject: message.subject,
            payload: message.payload,
        }
    }

    fn rejected(&self, reason: String) -> Rejected {
        Rejected {
            stream: names::COMMANDS,
            sequence: self.sequence,
            subject: self.subject.clone(),
            reason,
            payload: self.payload.clone(),
        }
    }

    /// Whether the one who asked had stopped waiting before the broker stored the message.
    fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.at > deadline)
    }
}

impl Leader<'_> {
    /// Folds messages of COMMANDS, appends what comes of them, and lets the effects follow.
    ///
    /// # Errors
    /// If the events may not be on disk: the state in memory must then be discarded.
    pub(crate) async fn process(
        &mut self,
        messages: Vec<stream_reader::Message>,
    ) -> anyhow::Result<()> {
        let asked: Vec<CommandMessage> = messages.into_iter().map(CommandMessage::read).collect();
        let now = self.now();
        self.state.wake(now);
        let mut lookups = self.prefetch_lookups(&asked).await?;
        let mut packer = Packer::new(self.last, self.state.through(), now);
        let mut effects = Effects::default();
        for message in asked {
            if message.sequence <= self.state.through() {
                continue;
            }
            let expected = self.state.through() + 1;
            if message.sequence > expected {
                let (from, to) = (expected, message.sequence - 1);
                ensure!(
                    message.skipped > to - from,
                    "COMMANDS {from} to {to} are in the stream and were not processed"
                );
                tracing::error!(
                    from,
                    to,
                    "messages of COMMANDS were purged or deleted before they were processed: \
                     their requests are lost"
                );
            }
            let known = message.message.is_some_and(|id| self.state.is_recent(id));
            if !known {
                self.process_message(&message, now, &mut lookups, &mut packer, &mut effects)
                    .await?;
            }
            if let Some(id) = message.message {
                self.state.note(now, id);
            }
            self.state.processed(message.sequence);
            packer.end_command(message.sequence, message.message);
        }
        self.commit(packer.finish(), effects).await
    }

    async fn process_message(
        &mut self,
        message: &CommandMessage,
        now: Millis,
        lookups: &mut Lookups,
        packer: &mut Packer,
        effects: &mut Effects,
    ) -> anyhow::Result<()> {
        let items = match &message.items {
            Ok(items) => items,
            Err(error) => {
                effects.rejected.push(message.rejected(error.to_string()));
                return Ok(());
            }
        };
        let partial = self.state.partial();
        let done = partial.map_or(0, |partial| partial.item as usize);
        for (place, item) in (0..).zip(items).skip(done) {
            let before = self.state.partial().unwrap_or_default();
            packer.begin_item(place, before);
            let reply = if message.is_expired() {
                let error = "the request waited longer than its sender".to_owned();
                Some(Reply::Refused { code: Code::Expired, error })
            } else {
                match item.command.clone().bounded() {
                    Ok(command) => {
                        let inbox = message.inbox.clone();
                        let requester = inbox.map(|inbox| Requester { inbox, item: item.id });
                        self.process_command(&command, requester, now, lookups, packer, effects)
                            .await?
                    }
                    Err(error) => {
                        effects.rejected.push(message.rejected(error.clone()));
                        Some(Reply::Refused { code: Code::Malformed, error })
                    }
                }
            };
            packer.end_item(&mut self.state);
            if let (Some(inbox), Some(reply)) = (&message.inbox, reply) {
                let replies = effects.replies.entry(inbox.clone()).or_default();
                replies.push((item.id, reply));
            }
        }
        Ok(())
    }

    /// Decides one command and packs its events; returns its reply, unless a bulk operation gives it later.
    async fn process_command(
        &mut self,
        command: &Command,
        mut requester: Option<Requester>,
        now: Millis,
        lookups: &mut Lookups,
        packer: &mut Packer,
        effects: &mut Effects,
    ) -> anyhow::Result<Option<Reply>> {
        let decision = loop {
            match self.state.decide(&self.rules, lookups, now, command) {
                Ok(decision) => break decision,
                Err(missing) => read(&self.broker, missing, lookups).await?,
            }
        };
        let mut reply = Some(decision.reply);
        for mut event in decision.events {
            if let Event::BulkStarted(operation) = &mut event {
                operation.requester = requester.take();
                reply = None;
            }
            self.dispatcher.mark(&mut event);
            packer.push(&mut self.state, event);
        }
        effects.stale.extend(decision.stale);
        Ok(reply)
    }

    /// Decides and appends slices of bulk operations: one large slice, or the only ones of several operations.
    pub(crate) async fn run_slices(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let mut packer = Packer::new(self.last, self.state.through(), now);
        let mut effects = Effects::default();
        let mut jobs = 0;
        while jobs < SLICES_EVENTS_MAX {
            let slice = match self.state.decide_slice(&self.bulk_reads.lookups, now) {
                Ok(Some(slice)) => slice,
                Ok(None) => break,
                Err(missing) => {
                    self.read_for_slice(missing);
                    break;
                }
            };
            self.bulk_reads.lookups = Lookups::default();
            let mut events = slice.events;
            jobs += events.len();
            events.iter_mut().for_each(|event| self.dispatcher.mark(event));
            packer.push_together(&mut self.state, events);
            if let Some((Requester { inbox, item }, reply)) = slice.reply {
                effects.replies.entry(inbox).or_default().push((item, reply));
            }
        }
        self.commit(packer.finish(), effects).await
    }

    fn read_for_slice(&mut self, missing: Missing) {
        self.bulk_reads.is_reading = true;
        let (broker, done) = (self.broker.clone(), self.done.clone());
        tokio::spawn(async move {
            // Only the operation waits for a bucket that cannot be read, until another service leads.
            while !done.is_closed() {
                let mut lookups = Lookups::default();
                match read(&broker, missing.clone(), &mut lookups).await {
                    Ok(()) => {
                        let _ = done.send(Done::BulkRead(lookups)).await;
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "jobs not read for a bulk operation, trying again"
                        );
                        tokio::time::sleep(BULK_READ_PAUSE).await;
                    }
                }
            }
        });
    }

    /// Receives the jobs of a slice, without those that have changed since.
    pub(crate) fn bulk_read(&mut self, mut read: Lookups) {
        self.bulk_reads.is_reading = false;
        for job in std::mem::take(&mut self.bulk_reads.changed) {
            read.jobs.remove(&job);
        }
        self.bulk_reads.lookups.jobs.extend(read.jobs);
        self.bulk_reads.lookups.answers.extend(read.answers);
    }

    /// Requeues lost runs, which no command requests.
    pub(crate) async fn reclaim_lost_runs(
        &mut self,
        lost: Vec<(JobId, Run)>,
    ) -> anyhow::Result<()> {
        let now = self.now();
        let mut packer = Packer::new(self.last, self.state.through(), now);
        for (job, run) in lost {
            if let Some(mut event) = self.state.decide_lost(job, run) {
                self.dispatcher.mark(&mut event);
                tracing::warn!(job.id = %job, run, "worker lost");
                packer.push(&mut self.state, event);
            }
        }
        self.commit(packer.finish(), Effects::default()).await
    }

    /// Fires the schedules whose time has come.
    pub(crate) async fn fire_due_schedules(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        if self.state.next_fire().is_none_or(|at| at > now) {
            return Ok(());
        }
        let mut packer = Packer::new(self.last, self.state.through(), now);
        let mut fired = 0;
        while let Some((project, name)) = self.state.due_schedule(now)
            && fired < FIRE_MAX
        {
            fired += 1;
            let id = Uuid::now_v7();
            let mut events = self.state.decide_fire(&self.rules, now, &project, &name, id);
            events.iter_mut().for_each(|event| self.dispatcher.mark(event));
            // The job and the event that its schedule fired must be in one message, or it would be
            // enqueued twice.
            packer.push_together(&mut self.state, events);
        }
        self.commit(packer.finish(), Effects::default()).await
    }

    /// Appends packed events, then lets the effects follow.
    async fn commit(&mut self, packed: Packed, effects: Effects) -> anyhow::Result<()> {
        self.broker.set_aside(&effects.rejected).await;
        // A message that no state service appended may have taken a sequence in between.
        let planned = self.last + 1;
        let mut sequences = Vec::with_capacity(packed.messages.len());
        for message in packed.messages {
            match self.broker.append(self.last, message.through, message.payload).await? {
                Appended::At(sequence) => self.last = sequence,
                Appended::Lost => bail!("another state service leads"),
            }
            sequences.push(self.last);
            self.state.skip_message(self.last);
        }
        // From here on everything may be repeated, or left out by a crash: it is level-triggered.
        for (inbox, answers) in effects.replies {
            let event = self.last;
            let answers = answers.into_iter().map(|(id, reply)| Answered { id, event, reply });
            let answers: Vec<Answered> = answers.collect();
            for answers in answers.chunks(REPLIES_MAX) {
                let payload = serde_json::to_vec(answers).context("replies are JSON")?;
                // A requester without a reply learns from the edge that the command is durable.
                if let Err(error) = self.broker.client.publish(inbox.clone(), payload.into()).await
                {
                    tracing::warn!(error = %error, replies = answers.len(), "not replied");
                }
            }
        }
        let mut stop = effects.stale;
        for (position, event) in &packed.events {
            self.bulk_reads.note(event);
            if let Some(change) = event.change() {
                let subject = names::live_event(change.project, change.job, change.status);
                let message = usize::try_from(position.sequence - planned)?;
                let position = Position::new(sequences[message], position.index);
                let body = live_event(position, &change);
                self.broker.client.publish(subject, body.into()).await?;
            }
            if let Event::Ended(ended) = event {
                let canceled = matches!(ended.to, Transition::Canceled { .. });
                if canceled && self.dispatcher.is_out(ended.job) {
                    stop.push((ended.job, ended.run));
                }
            }
            self.dispatcher.on_event(&mut self.state, event);
        }
        self.tell_to_stop(&stop).await
    }

    /// Tells processors which runs to stop.
    pub(crate) async fn tell_to_stop(&self, runs: &[(JobId, Run)]) -> anyhow::Result<()> {
        for runs in runs.chunks(STOP_RUNS_MAX) {
            let hint = serde_json::to_vec(&Stop { runs: runs.to_vec() })?;
            self.broker.client.publish(names::CONTROL_CANCEL, hint.into()).await?;
        }
        Ok(())
    }

    /// Reads, all at once, what these messages will need and memory does not hold.
    async fn prefetch_lookups(&self, asked: &[CommandMessage]) -> anyhow::Result<Lookups> {
        let mut lookups = Lookups::default();
        let now = std::time::Instant::now();
        lookups.held = self.queries.workers.held(now).collect();
        lookups.unsettled = !self.is_settled();
        let (mut jobs, mut keys) = (Vec::new(), Vec::new());
        for item in asked.iter().filter_map(|asked| asked.items.as_ref().ok()).flatten() {
            if let Command::Outcome(Outcome { job, .. }) = &item.command
                && !self.state.has(*job)
            {
                jobs.push(*job);
            }
            if let Command::Enqueue(ask) = &item.command
                && ask.idempotency.is_some()
                && let Some(first) = ask.jobs.first().filter(|job| !self.state.has(job.id))
            {
                jobs.push(first.id);
            }
            let key = match &item.command {
                Command::Enqueue(ask) => ask.idempotency,
                Command::Cancel(ask) => ask.idempotency,
                Command::Retry(ask) => ask.idempotency,
                Command::Project(_)
                | Command::Schedule(_)
                | Command::Started(_)
                | Command::Progress(_)
                | Command::Outcome(_) => None,
            };
            keys.extend(key.map(|key| key.key).filter(|key| self.state.answer(*key).is_none()));
        }
        let reads =
            keys.into_iter().map(|key| async move { (key, self.broker.read_answer(key).await) });
        let mut reads = stream::iter(reads).buffer_unordered(READS_MAX);
        while let Some((key, answer)) = reads.next().await {
            lookups.answers.insert(key, answer?);
        }
        drop(reads);
        // A job that was enqueued in this same batch is not in the bucket either: memory is read
        // first, so what is read here does not hide it.
        if !jobs.is_empty() {
            read(&self.broker, Missing::Jobs(jobs), &mut lookups).await?;
        }
        Ok(lookups)
    }
}

/// Reads what a decision needs.
async fn read(broker: &Broker, missing: Missing, lookups: &mut Lookups) -> anyhow::Result<()> {
    match missing {
        Missing::Reply(key) => {
            let answer = broker.read_answer(key).await?;
            lookups.answers.insert(key, answer);
        }
        Missing::Jobs(ids) => {
            let reads = ids.into_iter().map(|id| async move { (id, broker.read_job(id).await) });
            let mut reads = stream::iter(reads).buffer_unordered(READS_MAX);
            while let Some((id, job)) = reads.next().await {
                lookups.jobs.insert(id, job?.map(Arc::new));
            }
        }
    }
    Ok(())
}

/// The body of a live event.
fn live_event(position: job::Position, change: &job::event::Change<'_>) -> Vec<u8> {
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
    position: job::Position,
    job_id: JobId,
    project_id: &'a Id,
    batch_id: &'a Id,
    status: Status,
    run: Run,
    worker: Option<&'a Id>,
    error: Option<&'a Id>,
    progress: Option<&'a Json>,
}
