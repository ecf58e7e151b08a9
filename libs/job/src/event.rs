//! Events: what happened, in batches. The events in EVENTS contain the complete state.

mod change;
mod ended;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Backoff, Digest, Id, IdempotencyRecord, Job, JobHistory, JobId, JobLabels, JobType, Json,
    Position, PriorityClass, Run, Settings, Status, Usage,
    bulk::{BulkOperation, BulkProgress},
    operation::OperationStarted,
    schedule::ScheduleState,
    time::Millis,
    trace::TraceContext,
    version,
};

pub use change::Change;
pub use ended::{Ended, Requeued, Transition};

/// One message of EVENTS: events that were decided together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// When they were decided: the later of the leader's clock and the event before.
    pub at: Millis,
    /// The ids of the processed messages of COMMANDS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Uuid>,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// A state service began to lead.
    LeaderElected {
        /// How many led before it, and one.
        term: u64,
        /// The name of the leader.
        leader: Id,
        /// A field that only the next version knows.
        #[cfg(feature = "next-version")]
        #[serde(skip_serializing_if = "Option::is_none", default)]
        hint: Option<Id>,
    },
    /// A job became known, and queued as run 1.
    Enqueued(Box<Enqueued>),
    /// A run began.
    Started {
        /// The job.
        job: JobId,
        /// The project and batch it belongs to.
        #[serde(flatten)]
        of: JobScope,
        /// The run.
        run: Run,
        /// The worker.
        worker: Id,
        /// When, by the worker's clock.
        at: Millis,
    },
    /// A run reported progress.
    Progressed {
        /// The job.
        job: JobId,
        /// The project and batch it belongs to.
        of: JobScope,
        /// The run.
        run: Run,
        /// What its handler says.
        progress: Json,
    },
    /// A run ended, and with it perhaps its job.
    Ended(Box<Ended>),
    /// A failed or cancelled job was queued again by hand.
    Retried(Box<Retried>),
    /// Something was not accepted.
    Refused(Box<Refused>),
    /// A request with an idempotency key was answered.
    Answered {
        /// The key's hash.
        key: Digest,
        /// The answer.
        answer: Box<IdempotencyRecord>,
    },
    /// The settings of a project changed.
    ProjectSet {
        /// The project.
        project: Id,
        /// All of its settings from here on.
        settings: Box<Settings>,
    },
    /// A schedule was set.
    ScheduleSet {
        /// The project.
        project: Id,
        /// Its name in the project.
        name: Id,
        /// The schedule, and when it fires first.
        schedule: Box<ScheduleState>,
    },
    /// A schedule was removed.
    ScheduleRemoved {
        /// The project.
        project: Id,
        /// Its name in the project.
        name: Id,
    },
    /// A schedule's time came.
    ScheduleFired {
        /// The project.
        project: Id,
        /// Its name in the project.
        name: Id,
        /// The time that it fired for.
        at: Millis,
        /// The job that was enqueued; none where one of its batch was live.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        job: Option<JobId>,
        /// When it fires next.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<Millis>,
    },
    /// A cancel or a retry of many jobs was requested.
    BulkStarted(Box<BulkOperation>),
    /// The first bulk operation of a project has advanced by a slice.
    BulkAdvanced {
        /// The project.
        project: Id,
        /// What the slice did.
        slice: Box<BulkProgress>,
    },
    /// The first bulk operation of a project has finished.
    BulkFinished {
        /// The project.
        project: Id,
        /// What the last slice did, if the bulk operation is part of an operation.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        slice: Option<Box<BulkProgress>>,
    },
    /// A client started an operation.
    OperationStarted(Box<OperationStarted>),
    /// A client aborted an operation.
    OperationAborted {
        /// The operation.
        operation: Uuid,
        /// The name of the API key that did.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        by: Option<Id>,
    },
    /// A queued job was changed.
    Updated {
        /// The job.
        job: JobId,
        /// The project and batch it belongs to.
        of: JobScope,
        /// 0 to 1000, lower first.
        priority: u16,
        /// The class that the priority puts it in.
        #[serde(rename = "class")]
        priority_class: PriorityClass,
        /// Not to be run before this time.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        run_at: Option<Millis>,
        /// Canceled at this time if it is still queued.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        expires_at: Option<Millis>,
    },
    /// A message of COMMANDS with too many events for one message goes on in the next: with this
    /// item of it, those before are done.
    Partial {
        /// The place of the item in its message, from 0.
        item: u32,
        /// Jobs that the item has canceled or retried so far.
        jobs: u64,
        /// Batches they belonged to.
        batches: u64,
        /// The id of the message, if it has one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message: Option<Uuid>,
    },
    /// Something that only the next version knows.
    #[cfg(feature = "next-version")]
    Noted {
        /// What was noted.
        note: Id,
    },
}

impl Event {
    /// The version that a reader must know.
    pub fn required_version(&self) -> u32 {
        match self {
            #[cfg(feature = "next-version")]
            Self::Noted { .. } => version::KNOWN,
            _ => version::FIRST,
        }
    }
}

/// The project and batch of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobScope {
    /// The project.
    pub project: Id,
    /// The batch.
    pub batch: Id,
}

/// A new job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enqueued {
    /// Its id.
    pub job: JobId,
    /// The project it belongs to.
    pub project: Id,
    /// The batch it works on.
    pub batch: Id,
    /// What kind of work it is.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// 0 to 1000, lower first.
    pub priority: u16,
    /// The class that its priority put it in.
    #[serde(rename = "class")]
    pub priority_class: PriorityClass,
    /// The attempts it may use.
    pub max_attempts: u32,
    /// Whether its request named that number: a project's setting changes nothing of it then.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub own_attempts: bool,
    /// The backoff of its failed attempts, if its request sets one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<Backoff>,
    /// Not to be run before this time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_at: Option<Millis>,
    /// Canceled at this time if it is still queued.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<Millis>,
    /// What its handler is given.
    pub data: Json,
    /// The span of its request, if that is traced.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<TraceContext>,
}

impl Enqueued {
    /// The job that this event at `position` creates.
    pub fn job(&self, at: Millis, position: Position) -> Job {
        Job {
            id: self.job,
            project: self.project.clone(),
            batch: self.batch.clone(),
            job_type: self.job_type,
            priority: self.priority,
            priority_class: self.priority_class,
            data: self.data.clone(),
            status: Status::Queued,
            run: 1,
            attempts: 0,
            max_attempts: self.max_attempts,
            own_attempts: self.own_attempts,
            retry: self.retry.map(Box::new),
            created_at: at,
            queued_at: at,
            run_at: self.run_at,
            expires_at: self.expires_at,
            history: self
                .trace
                .map(|trace| Box::new(JobHistory { trace: Some(trace), ..JobHistory::default() })),
            order: position,
            version: position,
        }
    }
}

/// A job that was retried by hand. It carries the complete job, which memory may have evicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retried {
    /// What it was: failed or canceled.
    pub was: Status,
    /// The job as it became.
    pub job: Job,
}

/// Something that was not accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Why, for a person.
    pub reason: Id,
    /// The run whose outcome came too late. Its usage is counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<LateRun>,
}

/// A run that ended after it had been given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LateRun {
    /// The job.
    pub job: JobId,
    /// What it is counted under.
    pub labels: JobLabels,
    /// The run.
    pub run: Run,
    /// The worker that ran it.
    pub worker: Id,
    /// When it began, by the worker's clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<Millis>,
    /// When it ended, by the worker's clock.
    pub finished_at: Millis,
    /// What it cost.
    #[serde(default)]
    pub usage: Usage,
    /// The job as it was, where memory had let it go: its costs are counted on it too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub forgotten: Option<Box<Job>>,
}

impl Batch {
    /// The events with their positions, as message `sequence` of EVENTS.
    pub fn at_sequence(&self, sequence: u64) -> impl Iterator<Item = (Position, &Event)> {
        (0..).zip(&self.events).map(move |(index, event)| (Position::new(sequence, index), event))
    }
}
