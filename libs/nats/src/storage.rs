//! Detects a broker that does not store messages. After its disk was full, a broker answers
//! queries, but does not ack messages until it is restarted, even if there is space again.
//! Publishers notice this and notify all services.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;

use crate::{Broker, names};

/// How long a report is valid. Publishers repeat it within this time while the problem lasts.
const REPORT_HOLDS: Duration = Duration::from_secs(8);
/// The most subjects that are remembered.
const SUBJECTS_MAX: usize = 100;
/// The longest of them, in bytes: a longer one is no subject of ours.
const SUBJECT_BYTES_MAX: usize = 1_000;

/// The subjects whose messages the broker does not store. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Unstored(Arc<Mutex<BTreeMap<String, Instant>>>);

impl Unstored {
    /// The subjects of which this was reported lately.
    pub fn subjects(&self) -> Vec<String> {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.retain(|_, at| at.elapsed() < REPORT_HOLDS);
        reports.keys().cloned().collect()
    }

    fn note(&self, subject: String) {
        if subject.len() > SUBJECT_BYTES_MAX {
            return;
        }
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.len() < SUBJECTS_MAX || reports.contains_key(&subject) {
            reports.insert(subject, Instant::now());
        }
    }
}

impl Broker {
    /// Collects the reports of all services, this one's included.
    ///
    /// # Errors
    /// If the client is closed.
    pub async fn watch_storage(&self) -> Result<Unstored, async_nats::SubscribeError> {
        let mut reports = self.client.subscribe(names::UNSTORED).await?;
        let unstored = Unstored::default();
        let noted = unstored.clone();
        tokio::spawn(async move {
            while let Some(report) = reports.next().await {
                noted.note(String::from_utf8_lossy(&report.payload).into_owned());
            }
        });
        Ok(unstored)
    }

    /// Tells all services that the broker did not answer a message to `subject` in time, though the
    /// connection stands.
    pub(crate) async fn report_unstored(&self, subject: &str) {
        if self.is_connected() {
            tracing::error!(
                subject,
                "the broker does not confirm messages, though the connection stands: it may have no quorum or not \
                 run, or its disk may be full or failing; after a full disk, free space and restart nats-server"
            );
            // Lost with the connection, which then is the greater trouble.
            let _ = self.client.publish(names::UNSTORED, subject.to_owned().into()).await;
        }
    }
}
