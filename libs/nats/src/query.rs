//! Questions between services: request and reply, discoverable as NATS micro services.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, client::RequestErrorKind};
use job::{
    Counts, Id, Job, JobId, JobType, Limits, Position, ProjectUsage, Run, Settings, Status,
    delivery::Deliveries, schedule::ScheduleState, time::Millis,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    Broker,
    audit::AuditRecord,
    names::{self, StateQuery},
};

/// How long the state service that a question came to may take before all are asked.
const ANY_PATIENCE: Duration = Duration::from_millis(400);

/// A question without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No service answers the subject.
    #[error("no service answers {0}")]
    Away(&'static str),
    /// No answer came in time.
    #[error("{0} was not answered in time")]
    Late(&'static str),
    /// The answer is an error.
    #[error("{subject} was answered with an error: {why}")]
    Failed {
        /// The subject of the question.
        subject: &'static str,
        /// The service's words.
        why: String,
    },
}

/// For the last records of the audit log.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditQuery {
    /// Of this project alone.
    pub project: Option<String>,
    /// Of the API key with this id alone.
    pub key: Option<String>,
    /// Before a record: its time and its id.
    pub before: Option<(Millis, Uuid)>,
    /// How many.
    pub limit: usize,
}

/// Records of the audit log, the last first.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditAnswer {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// The last of them, if there are more before it.
    pub next: Option<(Millis, Uuid)>,
}

/// For a live job.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobQuery {
    /// Its id.
    pub job: JobId,
}

/// The job, where state's memory has it: the live ones, and those that the bucket lacks yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobAnswer {
    /// The job.
    pub job: Option<Job>,
    /// Up to which message of COMMANDS this is so.
    pub through: u64,
}

/// For the counts of a project, or of all.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatsQuery {
    /// The project.
    pub project: Option<String>,
}

/// The counts, and what the processors have.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatsAnswer {
    /// Jobs by status.
    pub counts: Counts,
    /// Queued jobs that wait for their time.
    pub scheduled: u64,
    /// Live processors.
    pub processors: u64,
    /// Jobs that they run at once.
    pub capacity: u64,
    /// The limits of the project.
    pub limits: Limits,
    /// Up to which event this is true.
    pub position: Position,
}

/// For the settings of a project.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectQuery {
    /// The project.
    pub project: Id,
}

/// The settings of a project; the configuration's values replace those that are not set.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProjectAnswer {
    /// The settings.
    pub settings: Settings,
    /// What it used of its limits in the last 60 s.
    pub usage: ProjectUsage,
    /// How the deliveries to its webhook stand.
    #[serde(default)]
    pub deliveries: Deliveries,
}

/// The schedules of a project.
#[derive(Debug, Serialize, Deserialize)]
pub struct SchedulesAnswer {
    /// By name.
    pub schedules: Vec<(Id, ScheduleState)>,
}

/// For the jobs of a project that are live.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobsQuery {
    /// The project.
    pub project: Id,
    /// Of this batch alone.
    pub batch: Option<Id>,
    /// In this status alone.
    pub status: Option<Status>,
    /// Of this kind alone.
    pub job_type: Option<JobType>,
    /// Whose ids come before this one: the page before ended there.
    pub before: Option<JobId>,
    /// At most this many jobs.
    pub limit: usize,
    /// Which of these ended jobs are live again.
    pub live: Vec<JobId>,
}

/// Live jobs, the newest first by their ids, without data and results.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobsAnswer {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// The start of the next page; absent on the last page.
    pub next: Option<JobId>,
    /// Of the jobs that were asked about, those that are live.
    pub live: Vec<JobId>,
    /// The last message of EVENTS that this follows from.
    pub event: u64,
}

/// For the jobs of a project that ended, the last first.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndedJobsQuery {
    /// The project.
    pub project: String,
    /// Of this batch alone.
    pub batch: Option<String>,
    /// With this outcome alone: completed, failed or canceled.
    pub outcome: Option<String>,
    /// Of this kind alone.
    pub job_type: Option<String>,
    /// Which ended before this event.
    pub before: Option<Position>,
    /// At most this many jobs.
    pub limit: usize,
    /// The message of EVENTS that the answer has to follow from.
    pub event: u64,
}

/// Ended jobs.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndedAnswer {
    /// The jobs, with the event of their end.
    pub jobs: Vec<(Position, JobId, Archived)>,
    /// The start of the next page; absent on the last page.
    pub next: Option<Position>,
}

/// Which of these runs a processor may run, or go on with.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunsQuery {
    /// The processor.
    pub processor: String,
    /// The runs.
    pub runs: Vec<(JobId, Run)>,
}

/// Some of the runs that were asked for: those that may be run, or those that may not go on.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunsAnswer {
    /// The runs.
    pub runs: Vec<(JobId, Run)>,
}

/// For sums over a range of time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MetricsQuery {
    /// The project; all where absent.
    pub project: Option<String>,
    /// The range.
    pub range: Range,
}

/// How far back sums reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Range {
    /// 24 hours.
    #[serde(rename = "24h")]
    Day,
    /// 7 days.
    #[serde(rename = "7d")]
    Week,
    /// 30 days.
    #[serde(rename = "30d")]
    Month,
    /// From the first job on.
    #[serde(rename = "all")]
    All,
}

impl Range {
    /// All ranges.
    pub const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::All];

    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
            Self::All => "all",
        }
    }
}

/// A job that the bucket no longer holds, from its last row in ClickHouse.
#[derive(Debug, Serialize, Deserialize)]
pub struct Archived {
    /// The project.
    pub project: String,
    /// The batch.
    pub batch: String,
    /// What kind of work it was.
    pub job_type: String,
    /// How it ended.
    pub outcome: String,
    /// The attempts that it used.
    pub attempts: u32,
    /// When it last became queued.
    pub queued_at: Millis,
    /// When its last run began.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub finished_at: Millis,
    /// What went wrong.
    pub error: String,
    /// The worker of its last run.
    pub worker: String,
    /// Tokens read by the model in its last run, and written.
    pub tokens: (u64, u64),
    /// The model that was asked.
    pub model: String,
    /// Its ended runs, oldest first; only if one job is requested.
    #[serde(default)]
    pub runs: Vec<ArchivedRun>,
}

/// One ended run of a job, as ClickHouse has it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArchivedRun {
    /// When its end was recorded.
    pub at: Millis,
    /// The run.
    pub run: Run,
    /// The attempts that had started.
    pub attempts: u32,
    /// How it ended.
    pub outcome: String,
    /// The worker.
    pub worker: String,
    /// What went wrong.
    pub error: String,
}

/// The answer to a question for an archived job.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArchivedAnswer {
    /// The job's last row.
    pub job: Option<Archived>,
}

/// The last message of EVENTS whose effects a client has seen. Cheap to clone; all clones share it.
///
/// Reads with it are monotonic across state replicas.
#[derive(Clone, Debug, Default)]
pub struct ReadToken(Arc<AtomicU64>);

impl ReadToken {
    /// The sequence of that message; 0 if there was none.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Records that a client has seen the effects of this message.
    pub fn note(&self, sequence: u64) {
        self.0.fetch_max(sequence, Ordering::AcqRel);
    }
}

impl Broker {
    /// Asks a service and waits up to `patience`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: &'static str,
        question: &Q,
        patience: Duration,
    ) -> Result<A, Error> {
        let (answer, _) = self.ask_with(subject, HeaderMap::new(), question, patience).await?;
        Ok(answer)
    }

    /// Asks a state service that knows EVENTS up to what was `seen`: any of them, and where that
    /// one does not answer, all. What the answer follows from counts as seen from here on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ask_state<Q: Serialize, A: DeserializeOwned>(
        &self,
        to: StateQuery,
        question: &Q,
        seen: &ReadToken,
        patience: Duration,
    ) -> Result<A, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(names::SEEN, seen.get().to_string());
        let first = self.ask_with(to.any, headers.clone(), question, ANY_PATIENCE).await;
        let (answer, known) = match first {
            Ok(answered) => answered,
            Err(error @ Error::Away(_)) => return Err(error),
            Err(_) => self.ask_with(to.all, headers, question, patience).await?,
        };
        seen.note(known);
        Ok(answer)
    }

    /// The answer, and up to which message of EVENTS the one who gave it knows.
    async fn ask_with<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: &'static str,
        headers: HeaderMap,
        question: &Q,
        patience: Duration,
    ) -> Result<(A, u64), Error> {
        let failed = |why: String| Error::Failed { subject, why };
        let payload = serde_json::to_vec(question).map_err(|error| failed(error.to_string()))?;
        let request = async_nats::Request::new();
        let request = request.headers(headers).payload(payload.into()).timeout(Some(patience));
        let answer = match self.client.send_request(subject, request).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => Error::Away(subject),
                    RequestErrorKind::TimedOut => Error::Late(subject),
                    _ => failed(error.to_string()),
                });
            }
        };
        if let Some(headers) = &answer.headers
            && let Some(why) = headers.get(async_nats::service::NATS_SERVICE_ERROR)
        {
            return Err(failed(why.to_string()));
        }
        let known = answer.headers.as_ref().and_then(names::seen).unwrap_or(0);
        let read = serde_json::from_slice(&answer.payload);
        read.map(|answer| (answer, known)).map_err(|error| failed(error.to_string()))
    }
}
