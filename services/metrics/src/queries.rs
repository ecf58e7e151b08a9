//! Queries for metrics over a time range, and for jobs that the bucket no longer holds.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::service::{Request, ServiceExt, error::Error as Refusal};
use clickhouse::{Client, Row};
use futures_util::StreamExt;
use job::{Position, time::Millis};
use nats::{
    Broker,
    analytics::Totals,
    names,
    query::{
        Archived, ArchivedAnswer, ArchivedRun, EndedAnswer, EndedJobsQuery, JobQuery, MetricsQuery,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{
    audit, checkpoint::CheckpointStore, ingest::Progress, recent_answers::RecentAnswers, rollups,
};

/// Questions that are worked on at once.
const AT_ONCE_MAX: usize = 16;

/// Answers questions until `stop` is cancelled.
pub(crate) async fn answer(
    broker: Broker,
    client: Client,
    progress: Progress,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let builder = broker.client.service_builder().description("Sums over time");
    let service = builder.start("metrics", env!("CARGO_PKG_VERSION")).await;
    let service = service.map_err(|error| anyhow::anyhow!("no questions can be heard: {error}"))?;
    let add = async |name: &str, subject: &str| {
        let endpoint = service.endpoint_builder().name(name).add(subject.to_owned()).await;
        endpoint.map_err(|error| anyhow::anyhow!("{subject} cannot be heard: {error}"))
    };
    let rollups = add("query", names::QUERY_METRICS).await?;
    let jobs = add("job", names::QUERY_ARCHIVED).await?;
    let ended = add("jobs", names::QUERY_ENDED).await?;
    let changes = add("audit", names::QUERY_AUDIT).await?;
    let recent = RecentAnswers::new();
    let answering_sums = rollups.for_each_concurrent(AT_ONCE_MAX, |request| async {
        let answer = |query| answer_sums(&broker, &client, &progress, &recent, query);
        respond(request, answer).await;
    });
    let answering_jobs = jobs.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond(request, |ask| answer_job(&client, ask)).await;
    });
    let answering_ended = ended.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond(request, |ask| answer_ended(&client, &broker, &progress, ask)).await;
    });
    let answering_changes = changes.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond(request, |ask| audit::answer(&client, ask)).await;
    });
    tokio::select! {
        () = stop.cancelled() => {}
        () = answering_changes => {}
        () = answering_ended => {}
        () = answering_sums => {}
        () = answering_jobs => {}
    }
    // A client that gets no answer asks again.
    let _ = service.stop().await;
    Ok(())
}

async fn answer_sums(
    broker: &Broker,
    client: &Client,
    progress: &Progress,
    recent: &RecentAnswers<MetricsQuery, Totals>,
    query: MetricsQuery,
) -> anyhow::Result<Arc<Totals>> {
    let started = Instant::now();
    let ingested = progress.reached().sequence;
    if let Some(answer) = recent.get(&query, started, ingested) {
        return Ok(answer);
    }
    let now = service::now_ms();
    let as_of = as_of(broker, progress, now).await?;
    let answer = Arc::new(rollups::rollups(client, &query, now, as_of).await?);
    recent.put(query, answer.clone(), started, ingested);
    Ok(answer)
}

/// Up to when the sums are whole: now, if ClickHouse has all of EVENTS, else the time of the
/// last event that it has.
async fn as_of(broker: &Broker, progress: &Progress, now: Millis) -> anyhow::Result<Millis> {
    let reached = progress.reached();
    let last = broker.last_sequence(names::EVENTS).await?;
    if reached.sequence >= last {
        return Ok(now);
    }
    // Another service ingests, or this one has just started: the stored checkpoint is used.
    let checkpoint = CheckpointStore::open(broker).await?.checkpoint();
    Ok(if checkpoint.next > last { now } else { checkpoint.at.max(reached.at) })
}

/// A row of `job_runs`, as far as it says what became of a job.
#[derive(Clone, Row, Deserialize)]
struct EndRow {
    #[serde(with = "clickhouse::serde::uuid")]
    job: uuid::Uuid,
    sequence: u64,
    idx: u32,
    project: String,
    batch: String,
    job_type: String,
    outcome: String,
    last: u8,
    run: u32,
    attempt: u32,
    queued_at: Millis,
    started_at: Millis,
    at: Millis,
    error: String,
    worker: String,
    tokens_in: u64,
    tokens_out: u64,
    model: String,
}

/// The columns of an [`EndRow`].
const END_COLUMNS: &str = "job, sequence, idx, project, batch, toString(type) AS job_type,
    toString(outcome) AS outcome, final AS last, run, attempt,
    toUnixTimestamp64Milli(queued_at) AS queued_at,
    toUnixTimestamp64Milli(started_at) AS started_at,
    toUnixTimestamp64Milli(runs.at) AS at, error, worker, tokens_in, tokens_out,
    toString(model) AS model";
/// Runs of one job that are shown.
const RUNS_MAX: usize = 200;
/// How soon the place of a pump elsewhere is looked at again: it cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a question waits for rows that are on their way.
const ROWS_WITHIN: Duration = Duration::from_secs(3);

impl EndRow {
    fn archived(self, runs: Vec<ArchivedRun>) -> Archived {
        Archived {
            project: self.project,
            batch: self.batch,
            job_type: self.job_type,
            outcome: self.outcome,
            attempts: self.attempt,
            queued_at: self.queued_at,
            started_at: Some(self.started_at).filter(|at| *at > 0),
            finished_at: self.at,
            error: self.error,
            worker: self.worker,
            tokens: (self.tokens_in, self.tokens_out),
            model: self.model,
            runs,
        }
    }
}

async fn answer_job(client: &Client, ask: JobQuery) -> anyhow::Result<ArchivedAnswer> {
    let sql = format!(
        "SELECT {END_COLUMNS} FROM job_runs AS runs WHERE job = {{job:UUID}}
        ORDER BY sequence DESC, idx DESC LIMIT {RUNS_MAX}"
    );
    let query = client.query_raw(&sql).param("job", ask.job.to_string());
    let rows: Vec<EndRow> = query.fetch_all().await?;
    let Some(last) = rows.iter().find(|row| row.last == 1).cloned() else {
        return Ok(ArchivedAnswer { job: None });
    };
    let tokens = rows.iter().fold((0, 0), |(input, output): (u64, u64), row| {
        (input.saturating_add(row.tokens_in), output.saturating_add(row.tokens_out))
    });
    let runs = rows.into_iter().rev().map(|row| ArchivedRun {
        at: row.at,
        run: row.run,
        attempts: row.attempt,
        outcome: row.outcome,
        worker: row.worker,
        error: row.error,
    });
    let runs = runs.collect();
    Ok(ArchivedAnswer { job: Some(Archived { tokens, ..last.archived(runs) }) })
}

/// Ended jobs, each by its last end.
async fn answer_ended(
    client: &Client,
    broker: &Broker,
    progress: &Progress,
    ask: EndedJobsQuery,
) -> anyhow::Result<EndedAnswer> {
    // Listing is read-your-writes: the end of a job that a client has seen is always included.
    let begun = Instant::now();
    let mut changes = progress.changes();
    while changes.borrow_and_update().sequence < ask.event {
        // Another one may pump: the place that it left tells.
        if CheckpointStore::open(broker).await?.checkpoint().next > ask.event {
            break;
        }
        let late = begun.elapsed() > ROWS_WITHIN;
        anyhow::ensure!(!late, "the rows up to event {} are not in ClickHouse yet", ask.event);
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    let before = ask.before.unwrap_or(Position::new(u64::MAX, u32::MAX));
    let sql = format!(
        "SELECT {END_COLUMNS} FROM job_runs AS runs
        WHERE project = {{project:String}} AND final
            AND (sequence, idx) < ({{sequence:UInt64}}, {{idx:UInt32}})
            AND ({{batch:String}} = '' OR batch = {{batch:String}})
            AND ({{outcome:String}} = '' OR outcome = {{outcome:String}})
            AND ({{job_type:String}} = '' OR type = {{job_type:String}})
        ORDER BY sequence DESC, idx DESC LIMIT {}",
        ask.limit + 1
    );
    let query = client
        .query_raw(&sql)
        .param("project", ask.project)
        .param("sequence", before.sequence)
        .param("idx", before.index)
        .param("batch", ask.batch.unwrap_or_default())
        .param("outcome", ask.outcome.unwrap_or_default())
        .param("job_type", ask.job_type.unwrap_or_default());
    let mut rows: Vec<EndRow> = query.fetch_all().await?;
    let more = rows.len() > ask.limit;
    rows.truncate(ask.limit);
    let next = rows.last().map(|row| Position::new(row.sequence, row.idx)).filter(|_| more);
    let last = last_ends(client, &rows).await?;
    // A retried job has an earlier end, too: that row is not its current one.
    rows.retain(|row| last.get(&row.job) == Some(&(row.sequence, row.idx)));
    let jobs = rows.into_iter().map(|row| {
        let position = Position::new(row.sequence, row.idx);
        (position, row.job, row.archived(Vec::new()))
    });
    Ok(EndedAnswer { jobs: jobs.collect(), next })
}

#[derive(Row, Deserialize)]
struct LastEnd {
    #[serde(with = "clickhouse::serde::uuid")]
    job: uuid::Uuid,
    last_sequence: u64,
    last_idx: u32,
}

/// The last end of each of these jobs.
async fn last_ends(
    client: &Client,
    rows: &[EndRow],
) -> anyhow::Result<HashMap<uuid::Uuid, (u64, u32)>> {
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<String> = rows.iter().map(|row| format!("'{}'", row.job)).collect();
    let sql = format!(
        "SELECT job, max((sequence, idx)).1 AS last_sequence, max((sequence, idx)).2 AS last_idx
        FROM job_runs WHERE job IN ({}) AND final GROUP BY job",
        ids.join(", ")
    );
    let ends: Vec<LastEnd> = client.query_raw(&sql).fetch_all().await?;
    Ok(ends.into_iter().map(|end| (end.job, (end.last_sequence, end.last_idx))).collect())
}

/// Reads a question, answers it, or says why not.
async fn respond<Q: DeserializeOwned, A: Serialize>(
    request: Request,
    answer: impl AsyncFnOnce(Q) -> anyhow::Result<A>,
) {
    let refusal = |code: usize, why: String| Refusal { code, status: why };
    let response = match serde_json::from_slice(&request.message.payload) {
        Err(error) => Err(refusal(400, error.to_string())),
        Ok(question) => match answer(question).await {
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "a question was not answered");
                Err(refusal(503, "ClickHouse did not answer".to_owned()))
            }
            Ok(answer) => match serde_json::to_vec(&answer) {
                Ok(body) => Ok(body.into()),
                Err(error) => Err(refusal(500, error.to_string())),
            },
        },
    };
    // The requester may be offline.
    let _ = request.respond(response).await;
}
