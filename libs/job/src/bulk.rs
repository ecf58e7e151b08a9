//! Bulk operations: a cancel of many jobs, or a retry of all failed ones.
//!
//! Such a request can name hundreds of thousands of jobs. It is recorded as an operation, which the leader then
//! carries out in slices, each small enough to fit one message of EVENTS. Other commands and questions are
//! processed between two slices. An operation applies to the jobs that existed when it was recorded, and its
//! requester gets the reply with the last slice. The operations of a project run one after the other; those of
//! several projects take turns.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Answer, Digest, Id, Idempotency, Job, JobId, Position, State, Status,
    decide::{Facts, Need, answer_of, canceled, revive},
    event::Event,
    live::batch_key,
    reply::Reply,
    time::Millis,
};

/// Jobs that one slice looks at.
const SLICE_JOBS_MAX: usize = 500;
/// Bytes of jobs that one slice queues again, but for a single job that is larger.
const SLICE_BYTES_MAX: usize = 1 << 20;
/// Jobs that are read from the bucket before their size is known.
const FIRST_READ_JOBS: usize = 16;
/// Ids of retried jobs that a reply lists; their number is always exact.
const REPLY_JOBS_MAX: usize = 10_000;

/// An operation in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkOperation {
    /// The project whose jobs it changes.
    pub project: Id,
    /// What it does.
    pub action: BulkAction,
    /// Makes a repeated request harmless.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idempotency: Option<Idempotency>,
    /// Where the reply goes; absent if nobody waits for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requester: Option<Requester>,
    /// The event that started it. Set when that is applied.
    #[serde(default)]
    pub started: Position,
    /// When that was.
    #[serde(default)]
    pub started_at: Millis,
    /// What has been done so far.
    #[serde(default)]
    pub progress: BulkProgress,
}

/// What a bulk operation does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BulkAction {
    /// Cancel active jobs.
    Cancel {
        /// Of these batches; of all if absent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        batches: Option<Vec<Id>>,
    },
    /// Queue failed jobs again.
    RetryFailed,
}

impl BulkOperation {
    /// An operation that nobody waits for yet.
    pub(crate) fn new(project: Id, action: BulkAction, idempotency: Option<Idempotency>) -> Self {
        Self {
            project,
            action,
            idempotency,
            requester: None,
            started: Position::default(),
            started_at: 0,
            progress: BulkProgress::default(),
        }
    }
}

/// Where the reply to a command goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requester {
    /// The NATS subject.
    pub inbox: String,
    /// The id of the command.
    pub item: Uuid,
}

/// How far a bulk operation has come, or what one slice adds to that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkProgress {
    /// The last job that was looked at: the key of its batch (0 in a retry) and its id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<(u64, JobId)>,
    /// Jobs that were changed.
    pub jobs: u64,
    /// Batches of canceled jobs.
    #[serde(default)]
    pub batches: u64,
    /// The key of the last batch in that number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_batch: Option<u64>,
    /// The first jobs that were queued again.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub retried: Vec<JobId>,
    /// Failed jobs that were not queued again.
    #[serde(default)]
    pub skipped: u64,
}

impl BulkProgress {
    fn add(&mut self, slice: &Self) {
        self.after = slice.after.or(self.after);
        self.jobs += slice.jobs;
        self.batches += slice.batches;
        self.last_batch = slice.last_batch.or(self.last_batch);
        let room = REPLY_JOBS_MAX.saturating_sub(self.retried.len());
        self.retried.extend(slice.retried.iter().take(room));
        self.skipped += slice.skipped;
    }
}

/// The operations of all projects. The first operation of the first project is next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BulkQueue(VecDeque<(Id, VecDeque<BulkOperation>)>);

impl BulkQueue {
    fn push(&mut self, operation: BulkOperation) {
        match self.0.iter_mut().find(|(project, _)| *project == operation.project) {
            Some((_, operations)) => operations.push_back(operation),
            None => self.0.push_back((operation.project.clone(), VecDeque::from([operation]))),
        }
    }

    /// Takes the operations of a project out of the queue.
    fn take(&mut self, project: &Id) -> VecDeque<BulkOperation> {
        let at = self.0.iter().position(|(of, _)| of == project);
        at.and_then(|at| self.0.remove(at)).map(|(_, operations)| operations).unwrap_or_default()
    }

    /// Puts them back behind those of all other projects.
    fn put_back(&mut self, project: &Id, operations: VecDeque<BulkOperation>) {
        if !operations.is_empty() {
            self.0.push_back((project.clone(), operations));
        }
    }

    fn next(&self) -> Option<&BulkOperation> {
        self.0.front().and_then(|(_, operations)| operations.front())
    }
}

/// What one slice of a bulk operation makes happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The events, in order. They fit one message of EVENTS.
    pub events: Vec<Event>,
    /// The reply and its requester, if this is the last slice and somebody waits for it.
    pub reply: Option<(Requester, Reply)>,
}

impl State {
    /// True if a bulk operation is in progress.
    pub fn has_bulk(&self) -> bool {
        self.known.bulk.next().is_some()
    }

    /// Decides the next slice of the next bulk operation at `now`; `None` if there is no operation.
    ///
    /// # Errors
    /// What has to be read first.
    pub fn decide_slice(&self, facts: &Facts, now: Millis) -> Result<Option<Slice>, Need> {
        let Some(operation) = self.known.bulk.next() else { return Ok(None) };
        if operation.progress == BulkProgress::default()
            && let Some(decision) = self.answered(facts, operation.idempotency)?
        {
            // A repeat of the operation before it.
            return Ok(Some(last(operation, Vec::new(), decision.reply, None)));
        }
        let (mut events, slice, is_last) = match &operation.action {
            BulkAction::Cancel { batches } => self.cancel_slice(operation, batches.as_deref()),
            BulkAction::RetryFailed => self.retry_slice(operation, facts, now)?,
        };
        if !is_last {
            let project = operation.project.clone();
            events.push(Event::BulkAdvanced { project, slice: Box::new(slice) });
            return Ok(Some(Slice { events, reply: None }));
        }
        let mut progress = operation.progress.clone();
        progress.add(&slice);
        let reply = match operation.action {
            BulkAction::Cancel { .. } => {
                Reply::Canceled { jobs: progress.jobs, batches: progress.batches }
            }
            BulkAction::RetryFailed => Reply::Retried {
                jobs: progress.retried,
                count: progress.jobs,
                left: progress.skipped,
            },
        };
        let answer = answer_of(operation.idempotency, &reply, now);
        Ok(Some(last(operation, events, reply, answer)))
    }

    fn cancel_slice(
        &self,
        operation: &BulkOperation,
        batches: Option<&[Id]>,
    ) -> (Vec<Event>, BulkProgress, bool) {
        let mut slice = BulkProgress::default();
        let Some(project) = self.known.projects.get(&operation.project) else {
            return (Vec::new(), slice, true);
        };
        let after = operation.progress.after;
        let places: Vec<(u64, JobId)> = match batches {
            None => project.live.after(after).take(SLICE_JOBS_MAX).collect(),
            Some(batches) => {
                let mut keys: Vec<u64> = batches.iter().map(batch_key).collect();
                keys.retain(|key| after.is_none_or(|(last, _)| *key >= last));
                keys.sort_unstable();
                keys.dedup();
                let places = keys.into_iter().flat_map(|key| project.live.of_key(key));
                let places = places.filter(|place| after.is_none_or(|last| *place > last));
                places.take(SLICE_JOBS_MAX).collect()
            }
        };
        let named: Option<HashSet<&Id>> = batches.map(|batches| batches.iter().collect());
        let mut last_batch = operation.progress.last_batch;
        let mut events = Vec::new();
        for (key, id) in &places {
            let Some(job) = self.job(*id) else { continue };
            let is_named = named.as_ref().is_none_or(|named| named.contains(&job.batch));
            if job.order >= operation.started || !is_named {
                continue;
            }
            events.push(canceled(&job, "canceled by a request".into(), None));
            slice.jobs += 1;
            slice.batches += u64::from(last_batch != Some(*key));
            last_batch = Some(*key);
        }
        slice.after = places.last().copied();
        slice.last_batch = last_batch;
        (events, slice, places.len() < SLICE_JOBS_MAX)
    }

    fn retry_slice(
        &self,
        operation: &BulkOperation,
        facts: &Facts,
        now: Millis,
    ) -> Result<(Vec<Event>, BulkProgress, bool), Need> {
        let mut slice = BulkProgress::default();
        let Some(project) = self.known.projects.get(&operation.project) else {
            return Ok((Vec::new(), slice, true));
        };
        let after = operation.progress.after.map(|(_, id)| id);
        let failed: Vec<(JobId, Millis)> =
            project.failed_after(after).take(SLICE_JOBS_MAX).collect();
        let (mut events, mut bytes) = (Vec::new(), 0);
        for (looked_at, (id, until)) in failed.iter().enumerate() {
            if bytes > SLICE_BYTES_MAX {
                return Ok((events, slice, false));
            }
            let job = if let Some(job) = self.job(*id) {
                Some(job)
            } else if let Some(read) = facts.jobs.get(id) {
                read.clone()
            } else {
                let each =
                    bytes.checked_div(looked_at).unwrap_or(SLICE_BYTES_MAX / FIRST_READ_JOBS);
                let fit = (SLICE_BYTES_MAX / each.max(1)).clamp(1, SLICE_JOBS_MAX);
                let unread = failed[looked_at..].iter().map(|(id, _)| *id);
                return Err(Need::Jobs(unread.filter(|id| !self.has(*id)).take(fit).collect()));
            };
            slice.after = Some((0, *id));
            let ended_before =
                |job: &Job| job.past().completed_at.is_none_or(|at| at <= operation.started_at);
            if *until <= now || job.as_deref().is_some_and(|job| !ended_before(job)) {
                continue;
            }
            let can_retry =
                |job: &Arc<Job>| job.status == Status::Failed && self.newer(job).is_none();
            let Some(job) = job.filter(can_retry) else {
                slice.skipped += 1;
                continue;
            };
            bytes += size_of::<Job>() + job.data.get().len();
            events.push(revive(&job, now));
            slice.jobs += 1;
            slice.retried.push(*id);
        }
        Ok((events, slice, failed.len() < SLICE_JOBS_MAX))
    }

    /// Applies the start of an operation.
    pub(crate) fn bulk_started(&mut self, at: Millis, position: Position, new: &BulkOperation) {
        let operation = BulkOperation { started: position, started_at: at, ..new.clone() };
        self.known.bulk.push(operation);
    }

    /// Applies a slice that was not the last; the operations of other projects are next.
    pub(crate) fn bulk_advanced(&mut self, project: &Id, slice: &BulkProgress) {
        let mut operations = self.known.bulk.take(project);
        if let Some(operation) = operations.front_mut() {
            operation.progress.add(slice);
        }
        self.known.bulk.put_back(project, operations);
    }

    /// Applies the end of the first operation of a project.
    pub(crate) fn bulk_finished(&mut self, project: &Id) {
        let mut operations = self.known.bulk.take(project);
        operations.pop_front();
        self.known.bulk.put_back(project, operations);
    }
}

/// The last slice of an operation.
fn last(
    operation: &BulkOperation,
    mut events: Vec<Event>,
    reply: Reply,
    answer: Option<(Digest, Box<Answer>)>,
) -> Slice {
    events.push(Event::BulkFinished { project: operation.project.clone() });
    events.extend(answer.map(|(key, answer)| Event::Answered { key, answer }));
    Slice { events, reply: operation.requester.clone().map(|requester| (requester, reply)) }
}
