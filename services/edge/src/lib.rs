//! The edge: HTTP in, JetStream subjects out.
//!
//! It validates, makes the ids of jobs, commits commands in groups and waits for state's reply.
//! It holds no state: any number of edges serve side by side.

mod app;
mod body;
mod browser;
mod config;
mod endpoints;
mod error;
mod events;
mod ids;
mod openapi;
mod request_id;
mod router;
mod server;
mod submit;
mod view;

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use router::openapi;

/// Serves until `stop` is cancelled, then lets requests under way end.
///
/// # Errors
/// If the address cannot or must not be listened on, or the NATS account cannot be used.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    check_listen(config.listen, config.insecure)?;
    let name = service::instance("edge");
    let Some(broker) = config.nats.connect(&name, &stop).await? else { return Ok(()) };
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(listen = %listener.local_addr()?, "edge serves");
    let app = app::App::start(&config, broker, stop.clone()).await?;
    server::serve(listener, router::router(app.clone()), stop).await;
    app.broker.client.flush().await.ok();
    tracing::info!("edge drained");
    Ok(())
}

/// Whether the edge may listen on an address.
///
/// # Errors
/// If other machines could reach it, and `--insecure` is not set.
pub fn check_listen(listen: SocketAddr, insecure: bool) -> anyhow::Result<()> {
    ensure!(
        listen.ip().is_loopback() || insecure,
        "{listen} is not a loopback address, and the edge knows no keys: anyone could use it. \
         Listen on 127.0.0.1, or say --insecure if something else guards it"
    );
    Ok(())
}
