//! Large results: stored before the outcome that refers to them is recorded.

use std::time::Duration;

use bytes::Bytes;
use job::{
    Json, StoredResult,
    bounds::{INLINE_RESULT_BYTES_MAX, result_too_large},
    command::End,
};
use nats::{Broker, wire::Work};

/// How often a result is offered to the broker before the run counts as failed.
const STORE_ATTEMPTS: u32 = 5;
/// How long to wait before it is offered again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Stores the result of a run if it is too large to be kept with the job; a result beyond `bytes_max`
/// becomes a failure that shows its beginning.
pub(crate) async fn store_large(broker: &Broker, work: &Work, end: End, bytes_max: usize) -> End {
    let End::Done { result: Some(result), stored: None } = end else { return end };
    let bytes = result.get().len();
    if bytes <= INLINE_RESULT_BYTES_MAX.min(bytes_max) {
        return End::Done { result: Some(result), stored: None };
    }
    if bytes > bytes_max {
        let error = result_too_large(work.job, bytes as u64, bytes_max as u64, result.get());
        return End::Reject { error: error.into() };
    }
    match store(broker, work, &result).await {
        Ok(()) => End::Done { result: None, stored: Some(StoredResult { bytes: bytes as u64 }) },
        Err(error) => {
            let error = format!("the result of {bytes} bytes could not be stored: {error}");
            End::Retry { error: error.into(), after_ms: None }
        }
    }
}

async fn store(broker: &Broker, work: &Work, result: &Json) -> Result<(), nats::results::Error> {
    let ttl = Duration::from_secs(u64::from(work.retention_s));
    let bytes = Bytes::copy_from_slice(result.get().as_bytes());
    let mut attempt = 1;
    loop {
        match broker.put_result(work.job, work.run, bytes.clone(), ttl).await {
            Err(error) if attempt < STORE_ATTEMPTS => {
                tracing::warn!(job.id = %work.job, %error, attempt, "result not stored, retrying");
            }
            stored => return stored,
        }
        attempt += 1;
        tokio::time::sleep(STORE_PAUSE).await;
    }
}
