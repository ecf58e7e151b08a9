//! Why a leader stops leading although the service is not stopped.

use nats::{snapshot, wire};

/// Why a leader stops leading. The replica then follows, and may lead again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepDown {
    /// The lease was not renewed in time.
    #[error("the lease was lost")]
    LeaseLost,
    /// The broker refused an append: EVENTS has a message of another leader.
    #[error("another state service leads")]
    AppendRefused,
    /// The broker refused a dispatch: another leader has moved the fence of the stream.
    #[error("another state service dispatches")]
    DispatchRefused,
    /// The broker refused a write of the bucket `jobs`: another leader has moved its fence.
    #[error("another state service writes the bucket")]
    WriteRefused,
    /// A message can only be read by a newer program.
    #[error(transparent)]
    Newer(wire::Malformed),
    /// The state in memory may differ from the disk.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl StepDown {
    /// Whether only a newer program can continue.
    pub fn is_for_newer(&self) -> bool {
        match self {
            Self::Newer(_) => true,
            Self::Failed(error) => {
                let snapshot = error.downcast_ref::<snapshot::Error>();
                matches!(error.downcast_ref(), Some(wire::Malformed::Newer { .. }))
                    || snapshot.is_some_and(snapshot::Error::is_for_newer)
            }
            _ => false,
        }
    }
}
