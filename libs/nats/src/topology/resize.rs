//! Streams that exist get the size that is set, and at least the number of replicas that is wanted.

use async_nats::jetstream::{
    ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind},
    stream::{Info, PersistenceMode},
};

use super::{Error, failed};
use crate::Broker;

/// Changes a stream that differs. One with more replicas keeps them, and one that holds more than the new size
/// keeps its size, which is logged.
pub(super) async fn resize(
    broker: &Broker,
    found: &Info,
    replicas: usize,
    bytes: Option<i64>,
) -> Result<(), Error> {
    let has = &found.config;
    let mut wanted = has.clone();
    wanted.num_replicas = has.num_replicas.max(replicas);
    let stored = i64::try_from(found.state.bytes).unwrap_or(i64::MAX);
    match bytes {
        Some(bytes) if bytes < stored => tracing::error!(
            stream = has.name,
            stored,
            bytes,
            "the stream holds more than its new size: it keeps the old one"
        ),
        Some(bytes) => wanted.max_bytes = bytes,
        None => {}
    }
    if (wanted.num_replicas, wanted.max_bytes) == (has.num_replicas, has.max_bytes) {
        return Ok(());
    }
    if wanted.num_replicas > 1 && has.persist_mode == Some(PersistenceMode::Async) {
        return Err(Error::Async { stream: has.name.clone() });
    }
    let updated = broker.js.update_stream(&wanted).await;
    updated.map_err(|error| refused(&has.name, wanted.num_replicas, &error))?;
    tracing::info!(
        stream = has.name,
        replicas = wanted.num_replicas,
        max_bytes = wanted.max_bytes,
        "stream changed"
    );
    Ok(())
}

/// What it means that a stream could not be made or changed.
pub(super) fn refused(stream: &str, replicas: usize, error: &CreateStreamError) -> Error {
    if let CreateStreamErrorKind::JetStream(why) = error.kind()
        && [ErrorCode::CLUSTER_NO_PEERS, ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED]
            .contains(&why.error_code())
    {
        return Error::Replicas { stream: stream.to_owned(), replicas, why: why.to_string() };
    }
    failed(stream, error)
}
