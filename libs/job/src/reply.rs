//! Replies to commands, sent when the decision is on disk.

use serde::{Deserialize, Serialize};

use crate::{JobId, Settings, operation::Operation, schedule::ScheduleState};

/// The reply to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The jobs are queued.
    Enqueued {
        /// Live jobs of the same batches that were cancelled.
        canceled: u64,
    },
    /// The jobs are stopped.
    Canceled {
        /// How many jobs.
        jobs: u64,
        /// How many batches they belonged to.
        batches: u64,
    },
    /// The jobs are queued again.
    Retried {
        /// Which: the first 10,000.
        jobs: Vec<JobId>,
        /// How many.
        count: u64,
        /// Failed jobs that were not: superseded by a newer job, or past their retention.
        left: u64,
    },
    /// The settings of the project are these now.
    ProjectSet(Box<Settings>),
    /// The schedule is set, or removed.
    ScheduleSet(Option<Box<ScheduleState>>),
    /// The job is changed.
    Updated,
    /// The operation was started, or aborted.
    Operation(Box<Operation>),
    /// It was not done.
    Refused {
        /// The kind of refusal.
        code: Code,
        /// Why, for a person.
        error: String,
        /// After how many seconds the same request may be accepted, if that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u32>,
    },
    /// A processor's message was processed.
    Noted,
}

/// Why a command was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No such job in that project.
    JobNotFound,
    /// The job is neither failed nor cancelled.
    JobNotRetryable,
    /// The job is not queued.
    JobNotQueued,
    /// The job would expire before it may run.
    ExpiresBeforeRunAt,
    /// A newer job of the same batch is live.
    Superseded,
    /// The same idempotency key came with another request.
    IdempotencyKeyReused,
    /// No such schedule in that project.
    ScheduleNotFound,
    /// The project has as many schedules as it may, or as much data in them.
    TooManySchedules,
    /// The settings and schedules of all projects have as many bytes as they may.
    SettingsFull,
    /// No such operation.
    OperationNotFound,
    /// Too many requests over many jobs of the project are in progress.
    TooManyOperations,
    /// The project would have more active jobs, or more bytes in them, than its share.
    ProjectFull,
    /// The request alone exceeds a limit of the project.
    LargerThanLimit,
    /// Settings that mean nothing together.
    SettingsMalformed,
    /// A schedule that has no meaning.
    ScheduleMalformed,
    /// The one who asked had stopped waiting.
    Expired,
    /// The command could not be read.
    Malformed,
    /// A reason that a newer state service gave.
    #[serde(other)]
    Unknown,
}
