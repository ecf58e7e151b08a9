//! Ended jobs, also those that the bucket no longer holds.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use clickhouse::{Client, Row};
use job::{Position, time::Millis};
use nats::{
    Broker,
    query::{
        Archived, ArchivedAnswer, ArchivedRun, EndedAnswer, EndedCursor, EndedJobsQuery, JobQuery,
    },
};
use serde::Deserialize;

use crate::{checkpoint::CheckpointStore, conditions::Conditions, ingest::Progress};

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
    toUnixTimestamp64Milli(t.at) AS at, error, worker, tokens_in, tokens_out,
    toString(model) AS model";
/// Runs of one job that are shown.
const RUNS_MAX: usize = 200;
const HOUR_MS: Millis = 3_600_000;
/// How often the checkpoint of another service is read: its changes cannot be awaited.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a query waits for rows that are on their way.
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

/// The last row of a job and its runs.
pub(crate) async fn archived(client: &Client, query: JobQuery) -> anyhow::Result<ArchivedAnswer> {
    let sql = format!(
        "SELECT {END_COLUMNS} FROM job_runs AS t WHERE job = {{job:UUID}}
        ORDER BY sequence DESC, idx DESC LIMIT {RUNS_MAX}"
    );
    let job = query.job.to_string();
    let query = client.query_raw(&sql).param("job", job);
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
pub(crate) async fn ended(
    client: &Client,
    broker: &Broker,
    progress: &Progress,
    query: EndedJobsQuery,
) -> anyhow::Result<EndedAnswer> {
    // Listing is read-your-writes: the end of a job that a client has seen is always included.
    let started = Instant::now();
    let mut changes = progress.changes();
    while changes.borrow_and_update().sequence < query.event {
        // Another service may ingest: its checkpoint is used.
        if CheckpointStore::open(broker).await?.checkpoint().next > query.event {
            break;
        }
        let late = started.elapsed() > ROWS_WITHIN;
        anyhow::ensure!(!late, "the rows up to event {} are not in ClickHouse yet", query.event);
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    let mut rows = Vec::new();
    // The last ends are in the last hours: a table of many projects is not sorted by time alone.
    for hours in [Some(1), Some(24), Some(30 * 24), None] {
        rows = last_rows(client, &query, hours).await?;
        let is_whole = hours.is_some_and(|hours| {
            let end = query.before.map(|before| before.at).or(query.filter.to);
            let start = end.unwrap_or_else(service::now_ms) - hours * HOUR_MS;
            query.filter.from.is_some_and(|from| from >= start)
        });
        if rows.len() > query.limit || is_whole {
            break;
        }
    }
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let next = rows
        .last()
        .filter(|_| more)
        .map(|row| EndedCursor { position: Position::new(row.sequence, row.idx), at: row.at });
    let last = last_ends(client, &rows).await?;
    // A retried job has an earlier end, too: that row is not its current one.
    rows.retain(|row| last.get(&row.job) == Some(&(row.sequence, row.idx)));
    let jobs = rows.into_iter().map(|row| {
        let position = Position::new(row.sequence, row.idx);
        (position, row.job, row.archived(Vec::new()))
    });
    Ok(EndedAnswer { jobs: jobs.collect(), next })
}

/// One row more than the page has: of the last `hours`, or of all time.
async fn last_rows(
    client: &Client,
    query: &EndedJobsQuery,
    hours: Option<i64>,
) -> anyhow::Result<Vec<EndRow>> {
    let mut conditions = Conditions::of_runs(&query.filter).and("t.final");
    for (sql, name, value) in [
        ("t.batch = {batch:String}", "batch", &query.batch),
        ("t.outcome = {outcome:String}", "outcome", &query.outcome),
    ] {
        if let Some(value) = value {
            conditions = conditions.text(sql, name, value.clone());
        }
    }
    let mut end = query.filter.to.unwrap_or_else(service::now_ms);
    if let Some(EndedCursor { position: Position { sequence, index }, at }) = query.before {
        end = end.min(at);
        conditions = conditions
            .millis("t.at <= fromUnixTimestamp64Milli({last:Int64})", "last", at)
            .unsigned(
                "(t.sequence, t.idx) < ({sequence:UInt64}, {idx:UInt32})",
                "sequence",
                sequence,
            )
            .with_unsigned("idx", index.into());
    }
    if let Some(to) = query.filter.to {
        conditions = conditions.millis("t.at < fromUnixTimestamp64Milli({to:Int64})", "to", to);
    }
    let start = hours.map(|hours| end - hours * HOUR_MS).max(query.filter.from);
    if let Some(start) = start {
        conditions =
            conditions.millis("t.at >= fromUnixTimestamp64Milli({from:Int64})", "from", start);
    }
    let sql = format!(
        "SELECT {END_COLUMNS} FROM job_runs AS t WHERE {}
        ORDER BY sequence DESC, idx DESC LIMIT {}",
        conditions.sql(),
        query.limit + 1
    );
    Ok(conditions.query(client, &sql).fetch_all().await?)
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
