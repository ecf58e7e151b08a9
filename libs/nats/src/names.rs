//! Every name on the wire, once.
//!
//! One mesh is one shard so far. A second shard would add its number after `jobmesh` in every
//! subject and every stream's name; only this module would change.

use async_nats::{HeaderMap, Subject};
use job::{Id, JobId, JobType, PriorityClass, Run, Status, version};

use crate::SubjectToken;

/// Commands: kept until they are processed.
pub const COMMANDS: &str = "COMMANDS";
/// What happened: the history that everything else follows from.
pub const EVENTS: &str = "EVENTS";
/// The subject of all events.
pub const EVENT_SUBJECT: &str = "jobmesh.evt";
/// What COMMANDS takes.
pub const COMMAND_SUBJECTS: &str = "jobmesh.cmd.*";

/// The audit log.
pub const AUDIT: &str = "AUDIT";
/// The subject of its records.
pub const AUDIT_SUBJECT: &str = "jobmesh.audit";

/// Messages that no service can process.
pub const REJECTED: &str = "REJECTED";
/// The subjects of [`REJECTED`].
pub const REJECTED_SUBJECTS: &str = "jobmesh.rejected.*.*";
/// Why a message was rejected.
pub const REJECTED_REASON: &str = "Jobmesh-Reason";
/// The subject that a rejected message had.
pub const REJECTED_SUBJECT: &str = "Jobmesh-Subject";

/// What tells all services that messages to a subject are not stored.
pub const UNSTORED: &str = "jobmesh.unstored";

/// The stream that marks an account in which a restore has started and not completed.
pub const RESTORE: &str = "RESTORE";
/// Its subject, to which nothing is published.
pub const RESTORE_SUBJECT: &str = "jobmesh.restore";

/// The bucket of jobs: what is.
pub const JOBS: &str = "jobs";
/// The stream behind the bucket of jobs.
pub const JOBS_STREAM: &str = "KV_jobs";
/// The key that says how far the bucket is, and fences its writers.
pub const THROUGH_KEY: &str = "_through";
/// The bucket of leases and of the places that readers have reached.
pub const LEASES: &str = "leases";
/// The bucket of API keys.
pub const KEYS: &str = "keys";
/// The stream behind the bucket of API keys.
pub const KEYS_STREAM: &str = "KV_keys";
/// The bucket of marks of error groups.
pub const FAILURES: &str = "failures";
/// The stream behind it.
pub const FAILURES_STREAM: &str = "KV_failures";
/// The object store of snapshots.
pub const SNAPSHOTS: &str = "snapshots";
/// The object store of results that are too large to be kept with their job.
pub const RESULTS: &str = "results";
/// The stream behind [`RESULTS`].
pub const RESULTS_STREAM: &str = "OBJ_results";
/// The lease of the leading state service.
pub const STATE_LEASE: &str = "state";
/// The key of run tokens, in the bucket of leases.
pub const RUN_TOKENS: &str = "run-tokens";
/// How far metrics has taken EVENTS into ClickHouse.
pub const METRICS_CHECKPOINT: &str = "metrics";

/// The subject of the reply to a command.
pub const REPLY: &str = "Jobmesh-Reply";
/// When the one who asked stops waiting (ms since 1970): judged by the stream's timestamp.
pub const DEADLINE: &str = "Jobmesh-Deadline";
/// Up to which message of COMMANDS a message of EVENTS reaches.
pub const THROUGH: &str = "Jobmesh-Through";
/// The version that a reader of a message must know.
pub const REQUIRED_VERSION: &str = "Jobmesh-Version";
/// Whose append a message of EVENTS is.
pub const APPEND: &str = "Jobmesh-Append";

/// What the inboxes of operators' commands begin with that any service answers.
pub const OPERATOR_INBOX: &str = "_INBOX.operator";

/// Asks all services for their background tasks.
pub const TASKS: &str = "jobmesh.tasks";
/// What the inboxes for their answers begin with: an edge may receive answers of other edges there.
pub const TASKS_INBOX: &str = "_INBOX.tasks";

/// Tells processors which runs to stop.
pub const CONTROL_CANCEL: &str = "jobmesh.control.cancel";
/// Asks processors to say at once that they are there.
pub const CONTROL_HEARTBEAT_REQUEST: &str = "jobmesh.control.heartbeat-request";
/// What all processors say of themselves.
pub const HEARTBEATS: &str = "jobmesh.heartbeat.*";

/// A question that any state service answers which knows enough; asked of all at once where the
/// one it came to did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateQuery {
    /// The subject that one of the state services listens on.
    pub any: &'static str,
    /// The subject that all of them listen on.
    pub all: &'static str,
}

/// The question for a live job.
pub const QUERY_JOB: StateQuery =
    StateQuery { any: "jobmesh.state.job", all: "jobmesh.state.all.job" };
/// The question for counts.
pub const QUERY_STATS: StateQuery =
    StateQuery { any: "jobmesh.state.stats", all: "jobmesh.state.all.stats" };
/// The question for the live jobs of a project.
pub const QUERY_JOBS: StateQuery =
    StateQuery { any: "jobmesh.state.jobs", all: "jobmesh.state.all.jobs" };
/// The question for the settings of a project.
pub const QUERY_PROJECT: StateQuery =
    StateQuery { any: "jobmesh.state.project", all: "jobmesh.state.all.project" };
/// The question for the schedules of a project.
pub const QUERY_SCHEDULES: StateQuery =
    StateQuery { any: "jobmesh.state.schedules", all: "jobmesh.state.all.schedules" };
/// The query for a page of projects.
pub const QUERY_PROJECTS: StateQuery =
    StateQuery { any: "jobmesh.state.projects", all: "jobmesh.state.all.projects" };
/// The query for the processors.
pub const QUERY_PROCESSORS: StateQuery =
    StateQuery { any: "jobmesh.state.processors", all: "jobmesh.state.all.processors" };
/// The query for deliveries to a webhook.
pub const QUERY_DELIVERIES: StateQuery =
    StateQuery { any: "jobmesh.state.deliveries", all: "jobmesh.state.all.deliveries" };
/// The query for the work that could start now.
pub const QUERY_DEMAND: StateQuery =
    StateQuery { any: "jobmesh.state.demand", all: "jobmesh.state.all.demand" };
/// The query for operations.
pub const QUERY_OPERATIONS: StateQuery =
    StateQuery { any: "jobmesh.state.operations", all: "jobmesh.state.all.operations" };
/// The query for what an operation would change.
pub const QUERY_PREVIEW: StateQuery =
    StateQuery { any: "jobmesh.state.preview", all: "jobmesh.state.all.preview" };
/// The last message of EVENTS that the client has seen: a replica that is behind it does not
/// answer. In an answer, the last message that the answer includes.
pub const SEEN: &str = "Jobmesh-Seen";
/// The question which of some runs may be run by a processor that just started. Only the
/// leader answers it, so with the next.
pub const QUERY_CLAIM: &str = "jobmesh.state.claim";
/// The question which of some runs are still current.
pub const QUERY_CURRENT: &str = "jobmesh.state.current";
/// The query for the state service that leads: only the leader answers, as long as its lease is fresh.
pub const QUERY_LEADER: &str = "jobmesh.state.all.leader";
/// The question for sums over time.
pub const QUERY_METRICS: &str = "jobmesh.metrics.query";
/// The question for the ended jobs of a project.
pub const QUERY_ENDED: &str = "jobmesh.metrics.jobs";
/// The query for a job that the bucket no longer holds.
pub const QUERY_ARCHIVED: &str = "jobmesh.metrics.job";

/// The query for records of the audit log.
pub const QUERY_AUDIT: &str = "jobmesh.metrics.audit";

/// The query for sums by bucket and group.
pub const QUERY_ANALYTICS: &str = "jobmesh.metrics.analytics";
/// The query for groups of errors.
pub const QUERY_FAILURES: &str = "jobmesh.metrics.failures";

/// What a message on COMMANDS asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// New jobs.
    Enqueue,
    /// New jobs for some columns of a row.
    Redo,
    /// Stop jobs.
    Cancel,
    /// Queue ended jobs again.
    Retry,
    /// Change the settings of a project.
    Project,
    /// Set or remove a schedule.
    Schedule,
    /// Change a queued job.
    Update,
    /// Start or abort an operation over many jobs.
    Operation,
    /// Runs began.
    Started,
    /// Progress of runs.
    Progress,
    /// Runs ended.
    Outcome,
    /// A verb of the next version.
    #[cfg(feature = "next-version")]
    Note,
}

impl Verb {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Enqueue,
        Self::Redo,
        Self::Cancel,
        Self::Retry,
        Self::Project,
        Self::Schedule,
        Self::Update,
        Self::Operation,
        Self::Started,
        Self::Progress,
        Self::Outcome,
        #[cfg(feature = "next-version")]
        Self::Note,
    ];

    /// The verb's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Redo => "redo",
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Project => "project",
            Self::Schedule => "schedule",
            Self::Update => "update",
            Self::Operation => "operation",
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Outcome => "outcome",
            #[cfg(feature = "next-version")]
            Self::Note => "note",
        }
    }

    /// The version that a reader must know.
    pub fn required_version(self) -> u32 {
        match self {
            #[cfg(feature = "next-version")]
            Self::Note => version::KNOWN,
            _ => version::FIRST,
        }
    }

    /// The subject of commands with this verb.
    pub fn subject(self) -> Subject {
        format!("jobmesh.cmd.{}", self.name()).into()
    }

    /// The verb of a command's subject.
    pub fn of(subject: &str) -> Option<Self> {
        let name = subject.strip_prefix("jobmesh.cmd.")?;
        Self::ALL.iter().copied().find(|verb| verb.name() == name)
    }
}

/// What [`SEEN`] says; none where a question or an answer has no such header.
pub fn seen(headers: &HeaderMap) -> Option<u64> {
    headers.get(SEEN)?.as_str().parse().ok()
}

/// The streams that each job passes.
pub fn job_streams() -> Vec<String> {
    let leases = format!("KV_{LEASES}");
    let others = [COMMANDS, EVENTS, JOBS_STREAM, &leases].map(str::to_owned);
    others.into_iter().chain(work_streams()).collect()
}

/// The streams of ready work.
pub fn work_streams() -> Vec<String> {
    PriorityClass::ALL.map(|class| work_stream(class).to_owned()).into()
}

/// The stream of ready work of a class.
pub fn work_stream(class: PriorityClass) -> &'static str {
    match class {
        PriorityClass::High => "WORK_HIGH",
        PriorityClass::Normal => "WORK_NORMAL",
        PriorityClass::Low => "WORK_LOW",
    }
}

/// What the stream of a class takes.
pub fn work_subjects(class: PriorityClass) -> String {
    format!("jobmesh.work.{}.>", class.name())
}

/// What the consumer of one kind of work reads. It never matches the fence.
pub fn work_filter(class: PriorityClass, job_type: JobType) -> String {
    format!("jobmesh.work.{}.{}.*.*", class.name(), job_type.name())
}

/// The durable consumer of one kind of work in a class.
pub fn work_consumer(job_type: JobType) -> &'static str {
    job_type.name()
}

/// The subject of one run of a job.
pub fn work(class: PriorityClass, job_type: JobType, job: JobId, run: Run) -> Subject {
    format!("jobmesh.work.{}.{}.{job}.{run}", class.name(), job_type.name()).into()
}

/// The job and run that a subject of ready work names.
pub fn work_run(subject: &str) -> Option<(JobId, Run)> {
    let mut tokens = subject.rsplit('.');
    let run = tokens.next()?.parse().ok()?;
    let job = tokens.next()?.parse().ok()?;
    Some((job, run))
}

/// The fence of a class's stream: the leader that replaced it last may dispatch.
pub fn fence(class: PriorityClass) -> Subject {
    format!("jobmesh.work.{}._fence", class.name()).into()
}

/// The live event of a job: at most once, for subscribers of core NATS.
pub fn live_event(project: &Id, job: JobId, status: Status) -> Subject {
    format!("jobmesh.event.{}.{job}.{}", SubjectToken::new(project), status.name()).into()
}

/// What a processor says of itself.
pub fn heartbeat(processor: &str) -> Subject {
    format!("jobmesh.heartbeat.{}", SubjectToken::new(processor)).into()
}

/// The name of the object that holds the result of a run.
pub fn result(job: JobId, run: Run) -> String {
    format!("{job}.{run}")
}

/// The subject of the bytes of an object.
pub fn result_chunks(nuid: &str) -> Subject {
    format!("$O.{RESULTS}.C.{nuid}").into()
}

/// The subject of the description of an object, whose name is given in base64.
pub fn result_info(name: &str) -> Subject {
    format!("$O.{RESULTS}.M.{name}").into()
}

/// The subject of the message that was rejected at `sequence` of `stream`.
pub fn rejected(stream: &str, sequence: u64) -> Subject {
    format!("jobmesh.rejected.{stream}.{sequence}").into()
}

/// The subject behind a key of a bucket.
pub fn key(bucket: &str, key: &str) -> Subject {
    format!("$KV.{bucket}.{key}").into()
}

/// The key of an idempotent request's answer.
pub fn answer_key(key: job::Digest) -> String {
    format!("idem.{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_subject_names_its_run_and_the_fence_names_none() {
        let job = JobId::from_u128(5);
        let subject = work(PriorityClass::High, JobType::ProcessBatch, job, 3);
        assert_eq!(subject.as_str(), format!("jobmesh.work.high.process_batch.{job}.3"));
        assert_eq!(work_run(&subject), Some((job, 3)));
        assert_eq!(work_run(&fence(PriorityClass::High)), None);
    }

    #[test]
    fn verbs_are_found_by_their_subjects() {
        for verb in Verb::ALL.iter().copied() {
            assert_eq!(Verb::of(&verb.subject()), Some(verb));
        }
        assert_eq!(Verb::of("jobmesh.cmd.destroy"), None);
    }
}
