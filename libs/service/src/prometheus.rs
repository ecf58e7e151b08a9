//! What a service shows to operators: measurements for Prometheus and answers to probes. Each service defines its
//! measurements in one file, `measurements.rs`.
//!
//! Without `--metrics-listen` nothing is recorded, and no probe is answered.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json, Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::{MethodRouter, get},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::{Health, Identity, VERSION};

const BUILD: &str = "jobmesh_build_info";
const CONNECTED: &str = "jobmesh_nats_connected";
const CONNECTS: &str = "jobmesh_nats_connects_total";
/// The upper bounds of the buckets of durations, in seconds.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
    600.0,
];
/// How often the samples of histograms are put in their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// The media type of the answer.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Set once this process serves its measurements. It may run a service twice, as that of processors does.
static IS_SERVED: AtomicBool = AtomicBool::new(false);

/// True if this process measures: what is costly to find out need not be otherwise.
pub fn is_measured() -> bool {
    IS_SERVED.load(Ordering::Acquire)
}

/// The address of the measurements.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Listen {
    /// The address at which Prometheus reads the measurements of the service, at /metrics, and at which /livez and
    /// /readyz answer probes (the edge answers /readyz at its own address only). It needs no API key: do not expose it. Nothing is measured if it is absent.
    #[arg(long, env = "JOBMESH_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
}

impl Listen {
    /// Serves the measurements of this process and its health, unless it does so already, until `stop` is cancelled.
    /// `describe` gives each measurement its unit and help. NATS need not be there yet.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn serve(
        &self,
        health: &Health,
        identity: Identity,
        describe: impl FnOnce(),
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(listen) = self.metrics_listen else { return Ok(()) };
        if IS_SERVED.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
            .add_global_label("service", identity.name())
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder)
            .context("there is another recorder of measurements")?;
        describe();
        describe_gauge!(BUILD, "1, with the version of the program.");
        gauge!(BUILD, "version" => VERSION.as_str()).set(1.0);
        describe_gauge!(CONNECTED, "1 while this process is connected to NATS.");
        describe_counter!(CONNECTS, "Connections to NATS that were made.");
        let (health, probed, upkeep) = (health.clone(), health.clone(), handle.clone());
        let render = get(async move || {
            let (connects, is_connected) = health.connection();
            gauge!(CONNECTED).set(f64::from(u8::from(is_connected)));
            counter!(CONNECTS).absolute(connects);
            ([(CONTENT_TYPE, TEXT)], handle.render())
        });
        let alive = get(async || "ok");
        let mut router = Router::new().route("/metrics", render).route("/livez", alive);
        // The edge finds out more, and answers at its own address.
        if identity != Identity::Edge {
            router = router.route("/readyz", readiness(probed));
        }
        tracing::info!(%listen, "measurements are served");
        tokio::spawn(async move {
            let stopped = stop.clone().cancelled_owned();
            let serving = axum::serve(listener, router).with_graceful_shutdown(stopped);
            let upkeep = async {
                loop {
                    tokio::time::sleep(UPKEEP_EVERY).await;
                    upkeep.run_upkeep();
                }
            };
            tokio::select! {
                served = serving => if let Err(error) = served {
                    tracing::error!(%error, "measurements are no longer served");
                },
                () = upkeep => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(())
    }
}

/// The answer to the question whether the service is ready.
fn readiness(health: Health) -> MethodRouter {
    get(async move || {
        let readiness = health.readiness();
        let status = match readiness.ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(readiness))
    })
}
