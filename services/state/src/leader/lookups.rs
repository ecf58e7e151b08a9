//! Reads from the bucket `jobs` what memory does not hold and a decision needs.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use job::{
    JobId, Lookups, Missing, State,
    command::{Command, OperationCommand, Outcome, Update},
};
use nats::Broker;

/// Reads of the bucket at the same time.
const READS_MAX: usize = 64;

/// Adds what is missing to `lookups`.
pub(super) async fn read(
    broker: &Broker,
    missing: Missing,
    lookups: &mut Lookups,
) -> anyhow::Result<()> {
    match missing {
        Missing::Reply(key) => {
            let answer = broker.read_answer(key).await?;
            lookups.answers.insert(key, answer);
        }
        Missing::Jobs(ids) => {
            let read = broker.read_jobs(&ids).await?;
            lookups.jobs.extend(read.into_iter().map(|(id, job)| (id, job.map(Arc::new))));
        }
    }
    Ok(())
}

/// Reads, all at once, what these commands will need.
pub(super) async fn prefetch(
    broker: &Broker,
    state: &State,
    commands: impl Iterator<Item = &Command>,
    lookups: &mut Lookups,
) -> anyhow::Result<()> {
    let (mut jobs, mut keys) = (Vec::new(), Vec::new());
    for command in commands {
        jobs.extend(job_to_read(command).filter(|job| !state.has(*job)));
        let key = match command {
            Command::Enqueue(enqueue) => enqueue.idempotency,
            Command::Cancel(cancel) => cancel.idempotency,
            Command::Retry(retry) => retry.idempotency,
            Command::Operation(OperationCommand::Start(start)) => start.idempotency,
            Command::Operation(OperationCommand::Abort(_))
            | Command::Update(_)
            | Command::Project(_)
            | Command::Schedule(_)
            | Command::Started(_)
            | Command::Progress(_)
            | Command::Outcome(_) => None,
            #[cfg(feature = "next-version")]
            Command::Note(_) => None,
        };
        keys.extend(key.map(|key| key.key).filter(|key| state.answer(*key).is_none()));
    }
    let reads = keys.into_iter().map(|key| async move { (key, broker.read_answer(key).await) });
    let mut reads = stream::iter(reads).buffer_unordered(READS_MAX);
    while let Some((key, answer)) = reads.next().await {
        lookups.answers.insert(key, answer?);
    }
    drop(reads);
    // A job that is enqueued in the same batch is not in the bucket either: memory is looked at
    // first, so this absence does not hide it.
    if jobs.is_empty() { Ok(()) } else { read(broker, Missing::Jobs(jobs), lookups).await }
}

/// The job that a command is likely to need although memory may have evicted it.
fn job_to_read(command: &Command) -> Option<JobId> {
    match command {
        Command::Update(Update { job, .. }) => Some(*job),
        Command::Outcome(Outcome { job, .. }) => Some(*job),
        Command::Enqueue(enqueue) if enqueue.idempotency.is_some() => {
            enqueue.jobs.first().map(|job| job.id)
        }
        _ => None,
    }
}
