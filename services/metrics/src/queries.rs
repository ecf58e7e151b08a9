//! Queries for metrics over a time range, and for jobs that the bucket no longer holds.

use std::{hash::Hash, sync::Arc, time::Instant};

use async_nats::service::{Request, ServiceExt, error::Error as Refusal};
use clickhouse::Client;
use futures_util::StreamExt;
use job::time::Millis;
use nats::{
    Broker,
    analytics::{Analytics, Totals},
    names, presence,
    query::{AnalyticsQuery, FailuresAnswer, FailuresQuery, MetricsQuery},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{
    analytics, audit, checkpoint::CheckpointStore, failures, group_sums::GroupSums,
    ingest::Progress, jobs, measurements, recent_answers::RecentAnswers, rollups,
};

/// Questions that are worked on at once.
const AT_ONCE_MAX: usize = 16;

/// Answers queries until `stop` is cancelled.
pub(crate) async fn answer(
    broker: Broker,
    name: &str,
    client: Client,
    progress: Progress,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let builder =
        broker.client.service_builder().metadata(presence::metadata(name, &service::VERSION));
    let builder = builder.description("Sums over time");
    let service = builder.start("metrics", env!("CARGO_PKG_VERSION")).await;
    let service = service.map_err(|error| anyhow::anyhow!("no query can be received: {error}"))?;
    let add = async |name: &str, subject: &str| {
        let endpoint = service.endpoint_builder().name(name).add(subject.to_owned()).await;
        endpoint.map_err(|error| anyhow::anyhow!("{subject} cannot be subscribed to: {error}"))
    };
    let totals = add("query", names::QUERY_METRICS).await?;
    let archived = add("job", names::QUERY_ARCHIVED).await?;
    let ended = add("jobs", names::QUERY_ENDED).await?;
    let changes = add("audit", names::QUERY_AUDIT).await?;
    let sums = add("analytics", names::QUERY_ANALYTICS).await?;
    let failed = add("failures", names::QUERY_FAILURES).await?;
    let group_sums = GroupSums::default();
    let recent_totals = RecentAnswers::<MetricsQuery, Totals>::new();
    let recent_sums = RecentAnswers::<AnalyticsQuery, Analytics>::new();
    let recent_failures = RecentAnswers::<FailuresQuery, FailuresAnswer>::new();
    let as_of = async || as_of(&broker, &progress, service::now_ms()).await;
    let answering_totals = totals.for_each_concurrent(AT_ONCE_MAX, |request| async {
        let compute = async |query: &MetricsQuery| {
            let since = group_sums.since(&client).await?;
            Ok(rollups::rollups(&client, query, since, service::now_ms(), as_of().await?).await?)
        };
        respond("totals", request, |query| recently(&progress, &recent_totals, query, compute))
            .await;
    });
    let answering_sums = sums.for_each_concurrent(AT_ONCE_MAX, |request| async {
        let compute = async |query: &AnalyticsQuery| {
            let since = group_sums.since(&client).await?;
            analytics::analytics(&client, query, since, as_of().await?).await
        };
        respond("analytics", request, |query| recently(&progress, &recent_sums, query, compute))
            .await;
    });
    let answering_failures = failed.for_each_concurrent(AT_ONCE_MAX, |request| async {
        let compute = async |query: &FailuresQuery| failures::failures(&client, query).await;
        respond("failures", request, |query| recently(&progress, &recent_failures, query, compute))
            .await;
    });
    let answering_archived = archived.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond("job", request, |query| jobs::archived(&client, query)).await;
    });
    let answering_ended = ended.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond("jobs", request, |query| jobs::ended(&client, &broker, &progress, query)).await;
    });
    let answering_changes = changes.for_each_concurrent(AT_ONCE_MAX, |request| async {
        respond("audit", request, |query| audit::answer(&client, query)).await;
    });
    tokio::select! {
        () = stop.cancelled() => {}
        () = answering_totals => {}
        () = answering_sums => {}
        () = answering_failures => {}
        () = answering_archived => {}
        () = answering_ended => {}
        () = answering_changes => {}
    }
    // A client that gets no answer asks again.
    let _ = service.stop().await;
    Ok(())
}

/// The recent answer to the same query, else the one that `compute` gives.
async fn recently<Q: Eq + Hash, A>(
    progress: &Progress,
    recent: &RecentAnswers<Q, A>,
    query: Q,
    compute: impl AsyncFnOnce(&Q) -> anyhow::Result<A>,
) -> anyhow::Result<Arc<A>> {
    let started = Instant::now();
    let ingested = progress.reached().sequence;
    if let Some(answer) = recent.get(&query, started, ingested) {
        return Ok(answer);
    }
    let answer = Arc::new(compute(&query).await?);
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

/// Records how long an answer took.
async fn measured<A>(
    name: &'static str,
    answer: impl Future<Output = anyhow::Result<A>>,
) -> anyhow::Result<A> {
    let started = Instant::now();
    let answer = answer.await;
    measurements::answered(name, started.elapsed(), answer.is_ok());
    answer
}

/// Reads a question, answers it, or says why not.
async fn respond<Q: DeserializeOwned, A: Serialize>(
    name: &'static str,
    request: Request,
    answer: impl AsyncFnOnce(Q) -> anyhow::Result<A>,
) {
    let refusal = |code: usize, why: String| Refusal { code, status: why };
    let response = match serde_json::from_slice(&request.message.payload) {
        Err(error) => Err(refusal(400, error.to_string())),
        Ok(question) => match measured(name, answer(question)).await {
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
    // The requester may be offline. An answer that is too large for a message is refused here.
    if let Err(error) = request.respond(response).await {
        tracing::warn!(query = name, %error, "an answer was not sent");
    }
}
