//! Stopping: one token that SIGINT and SIGTERM cancel, and that everything watches.

use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first SIGINT or SIGTERM. A second signal ends the process.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        for times in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if times > 0 {
                tracing::warn!("second signal: stopping without a drain");
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(stop)
}
