//! Commands within their bounds: what a client asks for is refused if it is out of them, what a
//! processor reports is cut to them, so that no outcome is lost.

use std::collections::HashSet;

use crate::bounds::{
    ATTEMPTS_MAX, BATCHES_MAX, ERROR_BYTES_MAX, EXPIRES_IN_S_MAX, ID_BYTES_MAX,
    INLINE_RESULT_BYTES_MAX, LATER_MS_MAX, OPERATION_JOBS_MAX, PRIORITY_MAX, PROGRESS_BYTES_MAX,
    REASON_BYTES_MAX, RUN_AT_MAX, WORKER_TIME_MAX, data, id, result_too_large, shorten, usage,
};
use crate::{
    Backoff, Id, JobLabels, Json,
    command::{
        Cancel, Command, End, Enqueue, OperationCommand, Outcome, Progress, Project, Retry,
        SetSchedule, Started, Update,
    },
    operation::OperationAction,
    schedule::Schedule,
    time::Millis,
};

/// The longest cron pattern and the longest name of a time zone, in bytes.
pub const SCHEDULE_TEXT_BYTES_MAX: usize = 256;

impl Command {
    /// The command within its bounds.
    ///
    /// # Errors
    /// Why it cannot be processed, with the field.
    pub fn bounded(self) -> Result<Self, String> {
        match self {
            Self::Enqueue(command) => enqueue(command).map(Self::Enqueue),
            Self::Cancel(command) => cancel(&command).map(|()| Self::Cancel(command)),
            Self::Retry(command) => retry(&command).map(|()| Self::Retry(command)),
            Self::Project(command) => project(&command).map(|()| Self::Project(command)),
            Self::Schedule(command) => schedule(&command).map(|()| Self::Schedule(command)),
            Self::Update(command) => update(command).map(Self::Update),
            Self::Operation(command) => operation(&command).map(|()| Self::Operation(command)),
            Self::Started(report) => Ok(Self::Started(started(report))),
            Self::Progress(report) => Ok(Self::Progress(progress(report))),
            Self::Outcome(report) => Ok(Self::Outcome(outcome(report))),
            #[cfg(feature = "next-version")]
            Self::Note(note) => Ok(Self::Note(note)),
        }
    }
}

fn enqueue(mut command: Enqueue) -> Result<Enqueue, String> {
    id("project", &command.project)?;
    if command.job_type.is_internal() {
        return Err(format!("type {} is not for clients", command.job_type.name()));
    }
    priority(command.priority)?;
    attempts(command.max_attempts)?;
    command.retry.iter().try_for_each(|retry| retry.check("retry"))?;
    command.run_at = command.run_at.map(|at| at.clamp(0, RUN_AT_MAX));
    command.expires_in.map_or(Ok(()), |seconds| within_expiry(seconds, 1))?;
    let jobs = command.jobs.len();
    if jobs > BATCHES_MAX {
        return Err(format!("jobs has {jobs} items, at most {BATCHES_MAX} are allowed"));
    }
    let mut ids = HashSet::with_capacity(jobs);
    for (index, job) in command.jobs.iter().enumerate() {
        if !ids.insert(job.id) {
            return Err(format!("jobs[{index}].id {} is there twice", job.id));
        }
        id("batch", &job.batch).map_err(|error| format!("jobs[{index}].{error}"))?;
        data("data", &job.data).map_err(|error| format!("jobs[{index}].{error}"))?;
    }
    Ok(command)
}

fn cancel(command: &Cancel) -> Result<(), String> {
    id("project", &command.project)?;
    let batches = command.batches.as_deref().unwrap_or_default();
    if batches.len() > BATCHES_MAX {
        let found = batches.len();
        return Err(format!("batches has {found} items, at most {BATCHES_MAX} are allowed"));
    }
    for (index, batch) in batches.iter().enumerate() {
        id("batch", batch).map_err(|error| format!("batches[{index}]: {error}"))?;
    }
    Ok(())
}

fn retry(command: &Retry) -> Result<(), String> {
    id("project", &command.project)
}

fn update(mut command: Update) -> Result<Update, String> {
    id("project", &command.project)?;
    command.priority.map_or(Ok(()), priority)?;
    command.run_at = command.run_at.map(|at| at.clamp(0, RUN_AT_MAX));
    command.expires_in.map_or(Ok(()), |seconds| within_expiry(seconds, 0))?;
    Ok(command)
}

fn operation(command: &OperationCommand) -> Result<(), String> {
    let OperationCommand::Start(start) = command else { return Ok(()) };
    let operation = &start.operation;
    for project in operation.projects.iter().flatten() {
        id("projects", project)?;
    }
    if let OperationAction::SetPriority { priority: number } = operation.action {
        priority(number)?;
    }
    let reason = operation.reason.as_deref().map_or(0, str::len);
    if reason > REASON_BYTES_MAX {
        return Err(format!("reason is longer than {REASON_BYTES_MAX} bytes"));
    }
    let jobs = operation.filter.jobs.as_ref().map_or(0, Vec::len);
    if jobs > OPERATION_JOBS_MAX {
        return Err(format!("jobIds has {jobs} items, at most {OPERATION_JOBS_MAX} are allowed"));
    }
    Ok(())
}

fn project(command: &Project) -> Result<(), String> {
    id("project", &command.project)?;
    command.change.check()
}

fn schedule(command: &SetSchedule) -> Result<(), String> {
    id("project", &command.project)?;
    id("name", &command.name)?;
    command.schedule.as_ref().map_or(Ok(()), Schedule::check)
}

impl Schedule {
    /// Checks everything but the meaning of pattern and time zone.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        for (field, text) in [("cron", &self.cron), ("timeZone", &self.time_zone)] {
            if text.len() > SCHEDULE_TEXT_BYTES_MAX {
                return Err(format!("{field} is longer than {SCHEDULE_TEXT_BYTES_MAX} bytes"));
            }
        }
        id("batchId", &self.batch_id)?;
        priority(self.priority)?;
        attempts(self.max_attempts)?;
        data("data", &self.data).map_err(|error| error.to_string())
    }
}

fn priority(priority: u16) -> Result<(), String> {
    if priority > PRIORITY_MAX {
        return Err(format!("priority must be an integer from 0 to {PRIORITY_MAX}"));
    }
    Ok(())
}

fn within_expiry(seconds: u32, least: u32) -> Result<(), String> {
    if !(least..=EXPIRES_IN_S_MAX).contains(&seconds) {
        return Err(format!("expiresIn must be an integer from {least} to {EXPIRES_IN_S_MAX}"));
    }
    Ok(())
}

fn attempts(attempts: Option<u32>) -> Result<(), String> {
    match attempts {
        Some(attempts) if !(1..=ATTEMPTS_MAX).contains(&attempts) => {
            Err(format!("maxAttempts must be an integer from 1 to {ATTEMPTS_MAX}"))
        }
        _ => Ok(()),
    }
}

fn started(mut report: Started) -> Started {
    shorten(&mut report.worker, ID_BYTES_MAX);
    report.at = worker_time(report.at);
    report
}

fn progress(mut report: Progress) -> Progress {
    let bytes = report.progress.get().len();
    if bytes > PROGRESS_BYTES_MAX {
        let text = format!("progress of {bytes} bytes is not shown, at most {PROGRESS_BYTES_MAX}");
        report.progress = Json::of(&text).expect("a text is JSON");
    }
    report
}

fn outcome(mut report: Outcome) -> Outcome {
    shorten(&mut report.worker, ID_BYTES_MAX);
    labels(&mut report.labels);
    report.started_at = report.started_at.map(worker_time);
    report.finished_at = worker_time(report.finished_at);
    usage(&mut report.usage);
    match &mut report.end {
        End::Done { result, .. } => {
            if let Some(result) = result.as_ref().map(Json::get)
                && result.len() > INLINE_RESULT_BYTES_MAX
            {
                let (bytes, most) = (result.len() as u64, INLINE_RESULT_BYTES_MAX as u64);
                let error = result_too_large(report.job, bytes, most, result).into();
                report.end = End::Reject { error };
            }
        }
        End::Retry { error, after_ms } | End::Deferred { error, after_ms } => {
            error_text(error);
            *after_ms = after_ms.map(|ms| ms.clamp(0, LATER_MS_MAX));
        }
        End::Reject { error } => error_text(error),
        End::Released | End::Redelivered => {}
    }
    report
}

fn labels(labels: &mut JobLabels) {
    shorten(&mut labels.project, ID_BYTES_MAX);
    shorten(&mut labels.batch, ID_BYTES_MAX);
    labels.attempt = labels.attempt.min(ATTEMPTS_MAX);
    labels.queued_at = worker_time(labels.queued_at);
}

fn error_text(error: &mut Id) {
    shorten(error, ERROR_BYTES_MAX);
}

fn worker_time(at: Millis) -> Millis {
    at.clamp(0, WORKER_TIME_MAX)
}

impl Backoff {
    /// Checks that every wait is within a week and makes sense.
    ///
    /// # Errors
    /// A sentence that names the field below `field`.
    pub fn check(&self, field: &str) -> Result<(), String> {
        let within = |name: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("{field}.{name} must be from {low} to {high}"))
        };
        let wait_max = crate::bounds::WAIT_MS_MAX as f64;
        within("baseMs", self.base_ms as f64, 0.0, wait_max)?;
        within("capMs", self.cap_ms as f64, 0.0, wait_max)?;
        within("factor", self.factor, 1.0, 100.0)?;
        within("jitter", self.jitter, 0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobId, JobType, PriorityClass, Usage, command::NewJob};

    fn report(end: End) -> Outcome {
        Outcome {
            job: JobId::from_u128(1),
            run: 1,
            worker: "w".repeat(1_000).into(),
            labels: JobLabels {
                project: "p".repeat(1_000).into(),
                batch: "b".into(),
                job_type: JobType::ProcessBatch,
                priority_class: PriorityClass::Normal,
                attempt: u32::MAX,
                queued_at: i64::MIN,
                trace: None,
            },
            started_at: Some(i64::MIN),
            finished_at: i64::MAX,
            usage: Usage {
                input_tokens: u64::MAX,
                output_tokens: u64::MAX,
                images: u64::MAX,
                model: Some("m".repeat(900_000).into()),
            },
            end,
            token: None,
        }
    }

    fn bounded(end: End) -> Outcome {
        match Command::Outcome(report(end)).bounded() {
            Ok(Command::Outcome(outcome)) => outcome,
            other => panic!("an outcome stays one: {other:?}"),
        }
    }

    #[test]
    fn no_field_of_an_outcome_can_grow_without_bound() {
        let large = "x".repeat(4_300_000);
        for end in [
            End::Retry { error: large.as_str().into(), after_ms: Some(i64::MAX) },
            End::Reject { error: large.as_str().into() },
            End::Deferred { error: large.as_str().into(), after_ms: None },
            End::Done { result: Json::of(&large).ok(), stored: None },
        ] {
            let outcome = serde_json::to_vec(&bounded(end)).expect("it is JSON");
            assert!(outcome.len() < 8_000, "{}", outcome.len());
        }
    }

    #[test]
    fn a_result_that_is_too_large_becomes_a_failure_that_shows_its_beginning() {
        let result = Json::of(&"begins so".repeat(60_000)).ok();
        let End::Reject { error } = bounded(End::Done { result, stored: None }).end else {
            panic!("it is refused")
        };
        assert!(error.contains("262144") && error.contains("begins so"), "{error}");
    }

    #[test]
    fn a_command_of_a_client_that_is_out_of_bounds_is_refused_by_its_field() {
        let new = |id: u128, batch: &str| NewJob {
            id: JobId::from_u128(id),
            batch: batch.into(),
            data: Json::default(),
        };
        let run_at = Some(i64::MAX);
        let enqueue = Enqueue { run_at, ..Enqueue::new("p".into(), vec![new(1, "b")]) };
        assert!(Command::Enqueue(enqueue.clone()).bounded().is_ok());
        let lone = serde_json::from_str(r#"{"t":"\ud800"}"#).expect("it is JSON");
        for (field, command) in [
            ("project", Enqueue { project: "\u{1}webhook:p".into(), ..enqueue.clone() }),
            ("type", Enqueue { job_type: JobType::Webhook, ..enqueue.clone() }),
            ("expiresIn", Enqueue { expires_in: Some(0), ..enqueue.clone() }),
            ("priority", Enqueue { priority: 1_001, ..enqueue.clone() }),
            ("maxAttempts", Enqueue { max_attempts: Some(0), ..enqueue.clone() }),
            ("twice", Enqueue { jobs: vec![new(1, "b"), new(1, "c")], ..enqueue.clone() }),
            ("batch", Enqueue { jobs: vec![new(1, "")], ..enqueue.clone() }),
            ("data.t", Enqueue { jobs: vec![NewJob { data: lone, ..new(1, "b") }], ..enqueue }),
        ] {
            let refused = Command::Enqueue(command).bounded().expect_err("it is out of bounds");
            assert!(refused.contains(field), "{field}: {refused}");
        }
    }
}
