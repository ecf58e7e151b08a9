//! From messages of COMMANDS, slices of bulk operations, lost runs and due schedules to transactions.

use std::collections::HashSet;

use job::{
    JobId, Lookups, Missing, Run, SLICE_BYTES_MAX, command::Command, event::Event, in_shard,
    reply::Code, time::Millis, transaction::Commit,
};
use nats::{Broker, wire::Malformed};
use uuid::Uuid;

use super::{
    command_batch::{CommandBatch, CommandMessage, Item},
    core::Core,
    event_appender::EventAppender,
    lookups,
    step_down::StepDown,
    tasks::Tasks,
};
use crate::measurements;

/// Schedules fired at once.
const FIRE_MAX: usize = 1_000;
/// Jobs that are read for a slice before their size is known, and the most that are read.
const FIRST_READ_JOBS: usize = 16;
const SLICE_JOBS_MAX: usize = 500;
/// Events of bulk operations that are appended at once, or jobs that are looked at for them, except for those of the
/// last slice.
const SLICES_WORK_MAX: usize = 500;

/// Makes transactions and commits them.
pub(super) struct CommandProcessor {
    broker: Broker,
    appender: EventAppender,
    bulk: BulkLookups,
    /// True if reports without the token of their run are accepted.
    missing_tokens_allowed: bool,
}

/// Why commands of one message cannot be processed. The message is set aside once, however many they are.
#[derive(Default)]
struct Reasons {
    first: Option<String>,
    more: usize,
}

impl Reasons {
    fn add(&mut self, reason: String) {
        match self.first {
            None => self.first = Some(reason),
            Some(_) => self.more += 1,
        }
    }

    /// The first one, and how many more there are.
    fn into_text(self) -> Option<String> {
        let first = self.first?;
        Some(match self.more {
            0 => first,
            more => format!("{first}; {more} more commands of this message are refused"),
        })
    }
}

/// What was read for the next slice of a bulk operation.
struct BulkLookups {
    lookups: Lookups,
    /// Jobs that are read at once: as many as fit a slice if they are as large as those read before.
    jobs_max: usize,
    /// True while more is being read.
    is_reading: bool,
    /// Jobs that changed since the read started.
    changed: HashSet<JobId>,
}

impl BulkLookups {
    fn new() -> Self {
        Self {
            lookups: Lookups::default(),
            jobs_max: FIRST_READ_JOBS,
            is_reading: false,
            changed: HashSet::new(),
        }
    }

    /// Receives what was read, without jobs that have changed since the read started.
    fn add(&mut self, mut read: Lookups) {
        self.is_reading = false;
        let bytes: usize = read.jobs.values().flatten().map(|job| job.content_bytes()).sum();
        if let Some(mean) = bytes.checked_div(read.jobs.len()) {
            // Those behind may be larger.
            let most = 4 * self.jobs_max;
            self.jobs_max = (SLICE_BYTES_MAX / mean.max(1)).clamp(1, most.min(SLICE_JOBS_MAX));
        }
        for job in std::mem::take(&mut self.changed) {
            read.jobs.remove(&job);
        }
        self.lookups.jobs.extend(read.jobs);
        self.lookups.answers.extend(read.answers);
    }

    /// Drops what an event has made outdated: terminal jobs that memory had evicted.
    fn note(&mut self, event: &Event) {
        let job = match event {
            Event::Retried(retried) => retried.job.id,
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

impl CommandProcessor {
    pub fn new(broker: Broker, missing_tokens_allowed: bool) -> Self {
        let appender = EventAppender::new(broker.clone());
        Self { broker, appender, bulk: BulkLookups::new(), missing_tokens_allowed }
    }

    /// Processes messages of COMMANDS in one transaction. `held` are the runs that online processors
    /// work on.
    ///
    /// # Errors
    /// If the events may not be on disk: the state in memory must be discarded.
    pub async fn process(
        &mut self,
        core: &mut Core,
        held: HashSet<(JobId, Run)>,
        mut batch: CommandBatch,
    ) -> Result<(), StepDown> {
        measurements::commands(batch.messages.len());
        batch.check_reports(&core.run_tokens, &core.state, self.missing_tokens_allowed);
        let unsettled = !core.is_settled();
        let mut lookups = Lookups { held, unsettled, ..Lookups::default() };
        lookups::prefetch(&self.broker, &core.state, batch.commands(), &mut lookups).await?;
        let mut rejected = Vec::new();
        let mut newer = None;
        let mut transaction = core.begin();
        for message in batch.messages {
            let expected = transaction.through() + 1;
            if message.sequence < expected {
                continue;
            }
            message.follows(expected)?;
            if let Err(error @ Malformed::Newer { .. }) = message.items {
                newer = Some(error);
                break;
            }
            if let Some(first) = transaction.first_item(message.id) {
                let mut reasons = Reasons::default();
                let items = match &message.items {
                    Ok(items) => items.as_slice(),
                    Err(error) => {
                        reasons.add(error.to_string());
                        &[]
                    }
                };
                for (index, item) in items.iter().enumerate().skip(first) {
                    let requester = message.requester(item);
                    let command = match accepted(&message, item) {
                        Ok(command) => command,
                        Err((code, error)) => {
                            if code == Code::Malformed {
                                reasons.add(error.clone());
                            }
                            transaction.refuse(index, requester, code, error);
                            continue;
                        }
                    };
                    while let Err(missing) =
                        transaction.process(index, command, requester.clone(), &lookups)
                    {
                        lookups::read(&self.broker, missing, &mut lookups).await?;
                    }
                }
                rejected.extend(reasons.into_text().map(|reason| message.rejected(reason)));
            }
            transaction.end_message(message.sequence, message.id);
        }
        let commit = transaction.commit();
        self.broker.set_aside(&rejected).await;
        self.commit(core, commit).await?;
        newer.map_or(Ok(()), |error| Err(StepDown::Newer(error)))
    }

    /// Advances bulk operations: by one large slice, or by the only slices of several operations. Meanwhile
    /// reads what the next slice needs.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub async fn advance_bulk(
        &mut self,
        core: &mut Core,
        tasks: &mut Tasks,
    ) -> Result<(), StepDown> {
        let mut transaction = core.begin();
        let mut work = 0;
        while work < SLICES_WORK_MAX {
            match transaction.advance_bulk(&self.bulk.lookups) {
                Ok(Some(count)) => work += count,
                Ok(None) => break,
                Err(mut missing) => {
                    if let Missing::Jobs(ids) = &mut missing {
                        ids.truncate(self.bulk.jobs_max);
                    }
                    self.bulk.is_reading = true;
                    tasks.read_for_bulk(missing);
                    break;
                }
            }
            self.bulk.lookups = Lookups::default();
        }
        let commit = transaction.commit();
        self.commit(core, commit).await
    }

    /// True if [`advance_bulk`](Self::advance_bulk) has work.
    pub fn has_slice(&self, core: &Core) -> bool {
        core.state.has_bulk() && !self.bulk.is_reading
    }

    /// Receives what a slice needs.
    pub fn done(&mut self, read: Lookups) {
        self.bulk.add(read);
    }

    /// Fires the schedules that are due by `until`, and cancels the jobs that have expired by then.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub async fn due(&mut self, core: &mut Core, until: Millis) -> Result<(), StepDown> {
        let mut transaction = core.begin();
        let mut fired = 0;
        while let Some((project, name)) = transaction.due_schedule(until)
            && fired < FIRE_MAX
        {
            fired += 1;
            transaction.fire(&project, &name, in_shard(Uuid::now_v7()));
        }
        let expired = transaction.expire_due(until);
        let commit = transaction.commit();
        self.commit(core, commit).await?;
        measurements::expired(expired);
        Ok(())
    }

    /// When the next schedule fires or the next job expires.
    pub fn next_due(&self, core: &Core) -> Option<Millis> {
        core.state.next_fire().into_iter().chain(core.state.next_expiry()).min()
    }

    /// Requeues lost runs, which no command requests.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub async fn requeue_lost(
        &mut self,
        core: &mut Core,
        lost: Vec<(JobId, Run)>,
    ) -> Result<(), StepDown> {
        let mut transaction = core.begin();
        for (job, run) in lost {
            if transaction.requeue_lost(job, run) {
                measurements::lost_run();
                tracing::warn!(job.id = %job, run, "worker lost");
            }
        }
        let commit = transaction.commit();
        self.commit(core, commit).await
    }

    /// Lets processors know which runs to stop.
    pub async fn stop_runs(&self, runs: &[(JobId, Run)]) -> Result<(), StepDown> {
        Ok(self.appender.stop_runs(runs).await?)
    }

    async fn commit(&mut self, core: &mut Core, commit: Commit) -> Result<(), StepDown> {
        for (_, event) in commit.events() {
            self.bulk.note(event);
        }
        self.appender.commit(core, commit).await
    }
}

/// The command of an item, or why it is refused without a decision.
fn accepted<'a>(message: &CommandMessage, item: &'a Item) -> Result<&'a Command, (Code, String)> {
    if message.is_expired() {
        return Err((Code::Expired, "the request waited longer than its sender".to_owned()));
    }
    item.command.as_ref().map_err(|error| (Code::Malformed, error.clone()))
}
