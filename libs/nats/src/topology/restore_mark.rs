//! The mark of a restore: while it is there, no service uses the account. An interrupted restore leaves it.

use async_nats::jetstream::stream::Config;

use super::{Error, absent, failed};
use crate::{Broker, names};

impl Broker {
    /// Marks the account, on as many servers as `replicas`: a restore starts.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn mark_restore(&self, replicas: usize) -> Result<(), Error> {
        let config = Config {
            name: names::RESTORE.to_owned(),
            subjects: vec![names::RESTORE_SUBJECT.to_owned()],
            num_replicas: replicas,
            ..Default::default()
        };
        let made = self.js.create_stream(config).await;
        made.map(|_| ()).map_err(|error| failed(names::RESTORE, &error))
    }

    /// Removes the mark: everything is restored.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn unmark_restore(&self) -> Result<(), Error> {
        let deleted = self.js.delete_stream(names::RESTORE).await;
        deleted.map(|_| ()).map_err(|error| failed(names::RESTORE, &error))
    }
}

/// Fails if a restore is in progress or was interrupted.
pub(super) async fn check(broker: &Broker) -> Result<(), Error> {
    match broker.js.get_stream(names::RESTORE).await {
        Ok(_) => Err(Error::Restoring),
        Err(error) => match absent(names::RESTORE, &error) {
            Error::Absent { .. } => Ok(()),
            error => Err(error),
        },
    }
}
