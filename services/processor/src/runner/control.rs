//! Leases, heartbeats and hints to stop.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use nats::{
    consumer,
    heartbeat::{self, Heartbeat},
    names,
    query::{RunsAnswer, RunsQuery},
    wire::Stop,
};
use tokio_util::sync::CancellationToken;

use super::Runner;
use crate::measurements;

/// How long an answer about current runs may take; the next extension asks again.
const CURRENT_PATIENCE: Duration = Duration::from_secs(2);

impl Runner {
    /// Extends the leases of deliveries, asks which runs are current, and publishes heartbeats.
    pub(super) async fn extend_leases(self: Arc<Self>, done: CancellationToken) {
        let mut extend = tokio::time::interval(consumer::EXTEND_EVERY);
        let mut heartbeat = tokio::time::interval(heartbeat::PERIOD);
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                _ = heartbeat.tick() => self.publish_heartbeat().await,
                _ = extend.tick() => {
                    for lease in self.in_flight.leases() {
                        lease.extend().await;
                    }
                    tokio::spawn(self.clone().stop_stale_runs());
                }
            }
        }
    }

    async fn stop_stale_runs(self: Arc<Self>) {
        let runs = self.in_flight.runs();
        if runs.is_empty() {
            return;
        }
        let question = RunsQuery { processor: self.name.clone(), runs };
        let answer = self.broker.query(names::QUERY_CURRENT, &question, CURRENT_PATIENCE).await;
        // Without a leader everything continues; the next extension asks again.
        let stale: RunsAnswer = match answer {
            Ok(answer) => answer,
            Err(error) => return tracing::debug!(error = %error, "current runs not known"),
        };
        for (job, run) in stale.runs {
            self.in_flight.stop(job, run);
        }
    }

    pub(super) async fn publish_heartbeat(&self) {
        let running = self.in_flight.runs();
        let draining = self.stop.is_cancelled();
        let job_types = self.pullers.job_types();
        measurements::observe(job_types, self.config.concurrency, running.len(), draining);
        let heartbeat = Heartbeat {
            processor: self.name.as_str().into(),
            capacity: self.config.concurrency,
            job_types: self.pullers.job_types().to_vec(),
            running,
            draining,
            handlers: self.registry.handler_names(),
            version: Some(service::VERSION.as_str().into()),
            message_version: Some(job::version::KNOWN),
            started_at: Some(self.started_at),
        };
        let body = serde_json::to_vec(&heartbeat).expect("a heartbeat is JSON");
        // A lost heartbeat is followed by another in two seconds.
        let _ = self.broker.client.publish(names::heartbeat(&self.name), body.into()).await;
    }

    /// Receives hints which runs to stop, and requests for a heartbeat.
    pub(super) async fn listen(self: Arc<Self>, done: CancellationToken) -> anyhow::Result<()> {
        let mut stops = self.broker.client.subscribe(names::CONTROL_CANCEL).await?;
        let mut requests = self.broker.client.subscribe(names::CONTROL_HEARTBEAT_REQUEST).await?;
        loop {
            tokio::select! {
                () = done.cancelled() => return Ok(()),
                Some(message) = stops.next() => match serde_json::from_slice::<Stop>(&message.payload) {
                    Ok(stop) => stop.runs.iter().for_each(|(job, run)| self.in_flight.stop(*job, *run)),
                    Err(error) => tracing::warn!(error = %error, "a hint to stop could not be read"),
                },
                Some(_) = requests.next() => self.publish_heartbeat().await,
            }
        }
    }
}
