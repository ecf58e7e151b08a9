//! Questions for sums over time, and for jobs that the bucket has let go.

use async_nats::service::{Request, ServiceExt, error::Error as Refusal};
use clickhouse::{Client, Row};
use futures_util::StreamExt;
use job::time::Millis;
use mesh::{
    Broker,
    ask::{Archived, ArchivedAnswer, AskJob, AskMetrics},
    names,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{place::Keeper, pump::Progress, sums};

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
    let sums = add("query", names::ASK_METRICS).await?;
    let jobs = add("job", names::ASK_ARCHIVED).await?;
    let answering_sums = sums.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond(request, |ask| answer_sums(&broker, &client, &progress, ask)).await;
    });
    let answering_jobs = jobs.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond(request, |ask| answer_job(&client, ask)).await;
    });
    tokio::select! {
        () = stop.cancelled() => {}
        () = answering_sums => {}
        () = answering_jobs => {}
    }
    // Who asked and hears nothing asks again.
    let _ = service.stop().await;
    Ok(())
}

async fn answer_sums(
    broker: &Broker,
    client: &Client,
    progress: &Progress,
    ask: AskMetrics,
) -> anyhow::Result<sums::Stats> {
    let now = service::now_ms();
    let as_of = as_of(broker, progress, now).await?;
    Ok(sums::sums(client, &ask, now, as_of).await?)
}

/// Up to when the sums are whole: now, if ClickHouse has all of EVENTS, else the time of the
/// last event that it has.
async fn as_of(broker: &Broker, progress: &Progress, now: Millis) -> anyhow::Result<Millis> {
    let reached = progress.reached();
    let last = broker.last_sequence(names::EVENTS).await?;
    if reached.sequence >= last {
        return Ok(now);
    }
    // Another one pumps, or this one has only begun: the place that was left tells.
    let place = Keeper::open(broker).await?.place();
    Ok(if place.next > last { now } else { place.at.max(reached.at) })
}

#[derive(Row, Deserialize)]
struct LastRow {
    project: String,
    batch: String,
    kind: String,
    outcome: String,
    attempt: u32,
    queued_at: Millis,
    started_at: Millis,
    at: Millis,
    error: String,
}

async fn answer_job(client: &Client, ask: AskJob) -> anyhow::Result<ArchivedAnswer> {
    let sql =
        "SELECT project, batch, toString(type) AS kind, toString(outcome) AS outcome, attempt,
            toUnixTimestamp64Milli(queued_at) AS queued_at,
            toUnixTimestamp64Milli(started_at) AS started_at,
            toUnixTimestamp64Milli(runs.at) AS at, error
        FROM job_runs AS runs
        WHERE job = {job:UUID} AND final
        ORDER BY sequence DESC, idx DESC
        LIMIT 1";
    let query = client.query_raw(sql).param("job", ask.job.to_string());
    let row: Option<LastRow> = query.fetch_optional().await?;
    Ok(ArchivedAnswer {
        job: row.map(|row| Archived {
            project: row.project,
            batch: row.batch,
            kind: row.kind,
            outcome: row.outcome,
            attempts: row.attempt,
            queued_at: row.queued_at,
            started_at: Some(row.started_at).filter(|at| *at > 0),
            finished_at: row.at,
            error: row.error,
        }),
    })
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
    // Who asked and is gone needs no answer.
    let _ = request.respond(response).await;
}
