//! A job, as state and the bucket hold it.
//!
//! ```text
//!             enqueue, redo
//!                 |          retry delay / worker lost / release (drain) / manual retry
//!                 v                    +-------------------------------+
//!             [queued] --started--> [processing] --failed, attempts left-+
//!                 |                 |    |  |
//!          cancel, expiry    outcome  fail cancel
//!                 v                 v    v  v
//!            [canceled]     [completed] [failed] [canceled]
//! ```
//! Clients move the edges into `queued` and `canceled`, processors the ones out of `processing`;
//! every move is an event, and only [`State::apply`](crate::State::apply) makes it.

use serde::{Deserialize, Serialize};

use crate::{
    Backoff, Id, JobId, Json, Position, PriorityClass, Run, time::Millis, trace::TraceContext,
};

/// How many steps of its life a job keeps beside its first; the oldest go first.
const TIMELINE_STEPS_MAX: usize = 40;

/// What kind of work a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobType {
    /// A whole batch.
    ProcessBatch,
    /// Some columns of one row of a batch again.
    ProcessRedo,
    /// Delivery of a webhook: an internal job.
    Webhook,
}

impl JobType {
    /// The kinds of work that clients ask for.
    pub const ALL: [Self; 2] = [Self::ProcessBatch, Self::ProcessRedo];
    /// Those, and the mesh's own.
    pub const EVERY: [Self; 3] = [Self::ProcessBatch, Self::ProcessRedo, Self::Webhook];

    /// The kind's name, in subjects and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProcessBatch => "process_batch",
            Self::ProcessRedo => "process_redo",
            Self::Webhook => "webhook",
        }
    }

    /// True if no client requested it: it is not counted or shown.
    pub fn is_internal(self) -> bool {
        self == Self::Webhook
    }
}

/// The status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits for a processor, or for its time.
    Queued,
    /// A handler runs it.
    Processing,
    /// Its handler was done with it.
    Completed,
    /// Its attempts are used up, or its handler refused it.
    Failed,
    /// It was canceled by a request, or superseded by a newer job.
    Canceled,
}

impl Status {
    /// The status's name, in subjects and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// True if only a manual retry can move the job.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

/// What a run cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Tokens read by the model.
    #[serde(skip_serializing_if = "is_zero")]
    pub input_tokens: u64,
    /// Tokens written by the model.
    #[serde(skip_serializing_if = "is_zero")]
    pub output_tokens: u64,
    /// Images read by the model.
    #[serde(skip_serializing_if = "is_zero")]
    pub images: u64,
    /// The model that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Id>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Usage {
    /// Takes in what a further run cost; its model replaces the one before.
    pub fn add(&mut self, other: &Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.images = self.images.saturating_add(other.images);
        if other.model.is_some() {
            self.model.clone_from(&other.model);
        }
    }

    /// Whether nothing was spent.
    pub fn is_nothing(&self) -> bool {
        self.input_tokens == 0 && self.output_tokens == 0 && self.images == 0
    }
}

/// Why a job is queued again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = RequeueReason))]
#[serde(rename_all = "lowercase")]
pub enum RequeueReason {
    /// Its handler failed and attempts are left.
    Retry,
    /// Its worker is offline.
    Lost,
    /// Its worker handed it back.
    Released,
    /// The provider asked to be called later.
    Deferred,
}

/// One step of a job's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// When it was taken.
    pub at: Millis,
    /// What the job became.
    pub status: Status,
    /// The run it belongs to.
    pub run: Run,
    /// The attempts that had started.
    #[serde(default)]
    pub attempts: u32,
    /// The worker.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub worker: Option<Id>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Id>,
    /// Why it was queued again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<RequeueReason>,
    /// When it may start again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_at: Option<Millis>,
}

/// A result that is kept in the result store, under the job's id and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredResult {
    /// How many bytes it has.
    pub bytes: u64,
}

/// The history of a job since it was enqueued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobHistory {
    /// The span of its request, if that is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// How often in a row it was taken back from a processor before its start.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub take_backs: u32,
    /// Deferrals in a row.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub deferrals: u32,
    /// When the first of them ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deferred_since: Option<Millis>,
    /// True if the end of the current run came from its own worker. Until then a late outcome
    /// brings usage that is not counted yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// The event that last queued it again by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retried: Option<Position>,
    /// When its last run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Millis>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Millis>,
    /// The last failure, or what cancelled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Id>,
    /// The job that took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<JobId>,
    /// What its handler returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// What its handler returned, if that is kept in the result store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<StoredResult>,
    /// How far its handler says it is with the current run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Json>,
    /// What all its runs cost.
    pub usage: Usage,
    /// The current or last worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<Id>,
    /// Its steps after it was enqueued, oldest first.
    pub timeline: Vec<Step>,
}

impl JobHistory {
    const NOTHING: Self = Self {
        trace: None,
        take_backs: 0,
        deferrals: 0,
        deferred_since: None,
        closed: false,
        retried: None,
        started_at: None,
        completed_at: None,
        error: None,
        superseded_by: None,
        result: None,
        stored: None,
        progress: None,
        usage: Usage { input_tokens: 0, output_tokens: 0, images: 0, model: None },
        worker: None,
        timeline: Vec::new(),
    };
}

impl Default for JobHistory {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// A job: its request, its status and its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Its id.
    pub id: JobId,
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
    /// What its handler is given.
    pub data: Json,
    /// Its status.
    pub status: Status,
    /// The current run.
    pub run: Run,
    /// The attempts since it was enqueued or retried by hand.
    pub attempts: u32,
    /// The attempts it may use.
    pub max_attempts: u32,
    /// Whether its request named that number.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub own_attempts: bool,
    /// The backoff of its failed attempts, if its request sets one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<Box<Backoff>>,
    /// When it was enqueued.
    pub created_at: Millis,
    /// When it last became queued.
    pub queued_at: Millis,
    /// Not to be run before this time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run_at: Option<Millis>,
    /// Canceled at this time if it is still queued.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<Millis>,
    /// What happened to it since; nothing, for most that wait.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) history: Option<Box<JobHistory>>,
    /// The position of its enqueue event: its age among jobs of the same priority.
    pub order: Position,
    /// The position of its last event: its version.
    pub version: Position,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

impl Job {
    /// The bytes of its data and of its result, as far as that is kept with the job.
    pub fn content_bytes(&self) -> usize {
        let result = self.history().result.as_ref().map_or(0, |result| result.get().len());
        self.data.get().len() + result
    }

    /// The job for a list: without its data and its result, which may be large.
    #[must_use]
    pub fn without_data(mut self) -> Self {
        self.data = Json::default();
        if let Some(history) = &mut self.history {
            history.result = None;
            history.stored = None;
            history.timeline = Vec::new();
        }
        self
    }

    /// Its history since it was enqueued.
    pub fn history(&self) -> &JobHistory {
        static NOTHING: JobHistory = JobHistory::NOTHING;
        self.history.as_deref().unwrap_or(&NOTHING)
    }

    /// What happened to it, to be added to.
    pub(crate) fn history_mut(&mut self) -> &mut JobHistory {
        self.history.get_or_insert_default()
    }

    /// Notes a step of its life, within the bound on how many are kept.
    pub(crate) fn step(&mut self, at: Millis, why: Option<RequeueReason>) {
        let (status, run, attempts) = (self.status, self.run, self.attempts);
        let run_at = self.run_at.filter(|_| status == Status::Queued);
        let history = self.history_mut();
        if history.timeline.len() >= TIMELINE_STEPS_MAX {
            history.timeline.remove(0);
        }
        let live = status == Status::Processing;
        history.timeline.push(Step {
            at,
            status,
            run,
            attempts,
            worker: history.worker.clone().filter(|_| live),
            error: history.error.clone().filter(|_| !live),
            why,
            run_at,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_tokens_stay_at_their_largest() {
        let most = Usage { input_tokens: u64::MAX, output_tokens: 1, images: 1, model: None };
        let mut sum = most.clone();
        sum.add(&most);
        assert_eq!((sum.input_tokens, sum.output_tokens), (u64::MAX, 2));
    }
}
