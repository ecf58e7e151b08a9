//! Slices of bulk operations: what a cancel or a retry of many jobs makes happen next.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Decision, Lookups, Missing, answer_of, canceled, retried};
use crate::{
    Digest, Id, Idempotency, IdempotencyRecord, Job, JobFilter, JobId, Position, State, Status,
    active_jobs::batch_key,
    bulk::{BulkAction, BulkOperation, BulkProgress, Requester},
    event::{Event, JobScope},
    operation::{OperationAction, OperationPart},
    reply::{Code, Reply},
    time::Millis,
};

/// Jobs that one slice changes, and failed jobs that it looks at.
const SLICE_JOBS_MAX: usize = 500;
/// Active jobs that one slice with a filter looks at.
const LOOK_JOBS_MAX: usize = 2_000;
/// Bytes of jobs that one slice queues again, but for a single job that is larger.
pub const SLICE_BYTES_MAX: usize = 1 << 20;
/// Operations of one project that may be in progress.
pub(super) const OPERATIONS_MAX: usize = 100;

/// What one slice of a bulk operation makes happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The events, in order. They fit one message of EVENTS.
    pub events: Vec<Event>,
    /// The reply and its requester, if this is the last slice and a requester waits for it.
    pub reply: Option<(Requester, Reply)>,
    /// Jobs that it looked at.
    pub looked_at: u64,
    /// True if the operation ends with it.
    pub is_last: bool,
}

impl State {
    /// True if a bulk operation is in progress.
    pub fn has_bulk(&self) -> bool {
        self.persisted.bulk.next().is_some()
    }

    /// Decides the next slice of the next bulk operation at `now`; `None` if there is no operation.
    ///
    /// # Errors
    /// What has to be read first: all jobs that the slice may need. Jobs can be left out, if the first is read.
    pub fn decide_slice(&self, lookups: &Lookups, now: Millis) -> Result<Option<Slice>, Missing> {
        let Some(operation) = self.persisted.bulk.next() else { return Ok(None) };
        if operation.progress == BulkProgress::default()
            && let Some(decision) = self.answered_before(lookups, operation.idempotency)?
        {
            // A repeat of the operation before it.
            let nothing = BulkProgress::default();
            return Ok(Some(last(operation, Vec::new(), nothing, decision.reply, None)));
        }
        let (mut events, slice, is_last) = match &operation.action {
            BulkAction::Cancel { batches } => self.cancel_slice(operation, batches.as_deref()),
            BulkAction::RetryFailed => {
                self.retry_slice(operation, &JobFilter::default(), lookups, now)?
            }
            BulkAction::RetryMatching(filter) => {
                self.retry_slice(operation, filter, lookups, now)?
            }
            BulkAction::Operation(part) if part.action == OperationAction::Retry => {
                self.retry_slice(operation, &part.filter, lookups, now)?
            }
            BulkAction::Operation(part) => self.active_slice(operation, part),
        };
        if !is_last {
            let project = operation.project.clone();
            let looked_at = slice.looked_at;
            events.push(Event::BulkAdvanced { project, slice: Box::new(slice) });
            return Ok(Some(Slice { events, reply: None, looked_at, is_last }));
        }
        let reply = operation.reply(&slice);
        let answer = answer_of(operation.idempotency, &reply, now);
        Ok(Some(last(operation, events, slice, reply, answer)))
    }

    /// Decides a request over many jobs: at once if it fits a slice, else a bulk operation starts.
    pub(crate) fn decide_bulk(
        &self,
        now: Millis,
        project: &Id,
        action: BulkAction,
        idempotency: Option<Idempotency>,
    ) -> Decision {
        let operation = BulkOperation::new(project.clone(), action, idempotency);
        let small = match &operation.action {
            BulkAction::Cancel { batches } => {
                Some(self.cancel_slice(&operation, batches.as_deref()))
            }
            BulkAction::Operation(_) => None,
            BulkAction::RetryFailed | BulkAction::RetryMatching(_) => self
                .persisted
                .projects
                .get(project)
                .is_none_or(|project| project.failed.is_empty())
                .then(|| (Vec::new(), BulkProgress::default(), true)),
        };
        if let Some((mut events, mut slice, true)) = small {
            // What was done before a leader failed in the middle of this request.
            let before = self.persisted.partial.unwrap_or_default();
            slice.jobs += before.jobs;
            slice.batches += before.batches;
            let reply = operation.reply(&slice);
            let answer = answer_of(idempotency, &reply, now);
            events.extend(answer.map(|(key, answer)| Event::Answered { key, answer }));
            return Decision { events, reply, stale: Vec::new() };
        }
        if self.persisted.bulk.len_of(project) >= OPERATIONS_MAX {
            let error = format!(
                "{OPERATIONS_MAX} requests over many jobs of project {project:?} are in progress; send this one again later"
            );
            return Decision::refused(Code::TooManyOperations, error);
        }
        let events = vec![Event::BulkStarted(Box::new(operation))];
        Decision { events, ..Decision::noted() }
    }

    /// The operation in progress of a request with this idempotency key.
    pub(crate) fn bulk_of_key(&self, key: Digest) -> Option<&BulkOperation> {
        self.persisted.bulk.find(key)
    }

    fn cancel_slice(
        &self,
        operation: &BulkOperation,
        batches: Option<&[Id]>,
    ) -> (Vec<Event>, BulkProgress, bool) {
        let mut slice = BulkProgress::default();
        let Some(project) = self.persisted.projects.get(&operation.project) else {
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
            if !operation.applies_to(&job) || !is_named {
                continue;
            }
            events.push(canceled(&job, "canceled by a request".into(), None));
            slice.jobs += 1;
            slice.batches += u64::from(last_batch != Some(*key));
            last_batch = Some(*key);
        }
        slice.after = places.last().copied();
        slice.looked_at = places.len() as u64;
        slice.last_batch = last_batch;
        (events, slice, places.len() < SLICE_JOBS_MAX)
    }

    /// A slice of an operation over active jobs.
    fn active_slice(
        &self,
        operation: &BulkOperation,
        part: &OperationPart,
    ) -> (Vec<Event>, BulkProgress, bool) {
        let mut slice = BulkProgress::default();
        let Some(project) = self.persisted.projects.get(&operation.project) else {
            return (Vec::new(), slice, true);
        };
        let after = operation.progress.after.map(|(_, id)| id);
        let status = part.filter.status.or(part.action.only_status());
        let ids = project.active_candidates(&part.filter, status, after, LOOK_JOBS_MAX);
        let is_last = ids.len() < LOOK_JOBS_MAX;
        let mut events = Vec::new();
        for id in ids {
            if events.len() == SLICE_JOBS_MAX {
                return (events, slice, false);
            }
            slice.after = Some((0, id));
            slice.looked_at += 1;
            let Some(job) = self.job(id).filter(|job| job.project == operation.project) else {
                continue;
            };
            let is_of_slice = part.action.statuses().contains(&job.status)
                && part.filter.matches(&job)
                && operation.applies_to(&job);
            if !is_of_slice {
                continue;
            }
            match (part.action, part.priority_class) {
                (OperationAction::SetPriority { priority }, Some(priority_class)) => {
                    if job.priority == priority {
                        continue;
                    }
                    let of = JobScope { project: job.project.clone(), batch: job.batch.clone() };
                    events.push(Event::Updated {
                        job: id,
                        of,
                        priority,
                        priority_class,
                        run_at: job.run_at,
                        expires_at: job.expires_at,
                    });
                }
                (action, _) => {
                    let what = match action {
                        OperationAction::Expire => "expired",
                        _ => "canceled",
                    };
                    let error = format!("{what} by operation {}", part.operation);
                    events.push(canceled(&job, error.into(), None));
                }
            }
            slice.jobs += 1;
        }
        (events, slice, is_last)
    }

    fn retry_slice(
        &self,
        operation: &BulkOperation,
        filter: &JobFilter,
        lookups: &Lookups,
        now: Millis,
    ) -> Result<(Vec<Event>, BulkProgress, bool), Missing> {
        let mut slice = BulkProgress::default();
        let Some(project) = self.persisted.projects.get(&operation.project) else {
            return Ok((Vec::new(), slice, true));
        };
        let after = operation.progress.after.map(|(_, id)| id);
        let failed = project.failed_candidates(filter, after, SLICE_JOBS_MAX);
        let is_part = matches!(operation.action, BulkAction::Operation(_));
        let mut newest = HashMap::new();
        let (mut events, mut bytes) = (Vec::new(), 0_usize);
        for (n, (id, until)) in failed.iter().enumerate() {
            let job = if let Some(job) = self.job(*id) {
                Some(job)
            } else if let Some(read) = lookups.jobs.get(id) {
                read.clone()
            } else {
                let unread = failed[n..].iter().map(|(id, _)| *id);
                let unread = unread.filter(|id| !self.has(*id) && !lookups.jobs.contains_key(id));
                return Err(Missing::Jobs(unread.collect()));
            };
            let ended_before =
                |job: &Job| job.history().completed_at.is_none_or(|at| at <= operation.started_at);
            // One that cannot be read may not match.
            let is_named = job.as_deref().map_or(filter.is_all(), |job| filter.matches(job));
            let is_of_slice = is_named && *until > now && job.as_deref().is_none_or(ended_before);
            let can_retry = |job: &Arc<Job>| {
                job.status == Status::Failed && {
                    let newest = newest
                        .entry(job.batch.clone())
                        .or_insert_with(|| self.newest_superseding(job, operation));
                    newest.is_none_or(|newest| newest < job.order)
                }
            };
            let Some(job) = job.filter(|_| is_of_slice).filter(can_retry) else {
                slice.after = Some((0, *id));
                slice.looked_at += 1;
                slice.skipped += u64::from(is_of_slice);
                continue;
            };
            let event = retried(&job, now);
            let more = serde_json::to_vec(&event).map_or(0, |json| json.len());
            if bytes > 0 && bytes + more > SLICE_BYTES_MAX {
                return Ok((events, slice, false));
            }
            bytes += more;
            events.push(event);
            slice.after = Some((0, *id));
            slice.looked_at += 1;
            slice.jobs += 1;
            if !is_part {
                slice.retried.push(*id);
            }
        }
        Ok((events, slice, failed.len() < SLICE_JOBS_MAX))
    }

    /// The age of the newest active job of a batch that supersedes others, without those that the operation has
    /// retried.
    fn newest_superseding(&self, of: &Job, operation: &BulkOperation) -> Option<Position> {
        let jobs = self.superseding(&of.project, &of.batch);
        let is_newer = |job: &Arc<Job>| operation.applies_to(job) || job.order >= operation.started;
        jobs.filter(is_newer).map(|job| job.order).max()
    }
}

/// The last slice of an operation.
fn last(
    operation: &BulkOperation,
    mut events: Vec<Event>,
    slice: BulkProgress,
    reply: Reply,
    answer: Option<(Digest, Box<IdempotencyRecord>)>,
) -> Slice {
    let is_part = matches!(operation.action, BulkAction::Operation(_));
    let looked_at = slice.looked_at;
    let slice = is_part.then(|| Box::new(slice));
    events.push(Event::BulkFinished { project: operation.project.clone(), slice });
    events.extend(answer.map(|(key, answer)| Event::Answered { key, answer }));
    let reply = operation.requester.clone().map(|requester| (requester, reply));
    Slice { events, reply, looked_at, is_last: true }
}

#[cfg(test)]
mod tests;
