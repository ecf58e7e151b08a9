//! The edge: HTTP in, JetStream subjects out.
//!
//! It validates, makes the ids of jobs, commits commands in groups and waits for state's reply.
//! It holds no state: any number of edges serve side by side.

mod app;
mod audit;
mod authorize;
mod body;
mod browser;
mod config;
mod endpoints;
mod error;
mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
mod ids;
mod keys;
mod live;
mod measurements;
mod openapi;
mod proxies;
mod readiness;
mod refusals;
mod request_id;
mod router;
mod server;
mod submit;
mod traces;
mod view;

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use async_nats::service::ServiceExt;
use nats::presence;
use service::{Health, Identity, tasks};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Origin};
pub use router::openapi;

use browser::Browsers;
use router::Observed;
use server::Tls;

/// Serves until `stop` is cancelled, then lets requests under way end.
///
/// # Errors
/// If the address cannot or must not be listened on, or the NATS account cannot be used.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    check_listen(config.listen, config.insecure || config.require_keys)?;
    let name = service::instance(Identity::Edge);
    // Before it connects: what is wrong with files is reported at once.
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::start(certificate, key, stop.clone())?),
        _ => None,
    };
    let health = Health::default();
    let describe = measurements::describe;
    config.measurements.serve(&health, Identity::Edge, describe, stop.clone()).await?;
    let broker = config.nats.connect(Identity::Edge, &name, &stop).await?;
    let Some(broker) = broker else { return Ok(()) };
    health.connected(&broker);
    tasks::list(&[app::FILL, events::DISTRIBUTION, keys::FOLLOWING]);
    tasks::report_tasks(&broker, Identity::Edge, &name).await?;
    // It answers who runs, and nothing else.
    let present =
        broker.client.service_builder().metadata(presence::metadata(&name, &service::VERSION));
    let present = present.start(Identity::Edge.name(), env!("CARGO_PKG_VERSION")).await;
    let _present = present.map_err(|error| anyhow::anyhow!("not announced at NATS: {error}"))?;
    let keys = keys::Keys::start(&broker, config.require_keys, stop.clone()).await?;
    let Some(keys) = keys else { return Ok(()) };
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(listen = %listener.local_addr()?, "edge serves");
    let app = app::App::start(&config, broker, keys, stop.clone()).await?;
    let exporter = config.otlp.start(Identity::Edge)?;
    let observed = Observed {
        is_measured: config.measurements.metrics_listen.is_some(),
        tracer: exporter.as_ref().map(|exporter| exporter.tracer.clone()),
    };
    let routers = router::routers(&app, &Browsers::new(&config), &observed);
    drop(observed);
    server::serve(listener, routers, tls, &config, stop).await;
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    app.broker.flush().await;
    tracing::info!("edge drained");
    Ok(())
}

/// Whether the edge may listen on an address.
///
/// # Errors
/// If other machines could reach it, and it is not `allowed` by `--require-keys` or `--insecure`.
pub fn check_listen(listen: SocketAddr, allowed: bool) -> anyhow::Result<()> {
    ensure!(
        listen.ip().is_loopback() || allowed,
        "{listen} is not a loopback address: anyone could use the API while there is no API key. Listen on 127.0.0.1, set \
         --require-keys so that each request needs an API key, or --insecure if something else guards it"
    );
    Ok(())
}
