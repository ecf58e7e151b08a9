//! Questions between services: request and reply, discoverable as NATS micro services.

mod metrics;
mod state;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, client::RequestErrorKind};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Broker,
    names::{self, StateQuery},
};

pub use metrics::{
    AnalyticsQuery, Archived, ArchivedAnswer, ArchivedRun, AuditAnswer, AuditQuery, EndedAnswer,
    EndedCursor, EndedJobsQuery, FailureGroup, FailureView, FailuresAnswer, FailuresQuery,
    MetricsQuery, RunFilter,
};
pub use state::{
    DeliveriesAnswer, DeliveriesQuery, DemandAnswer, DemandQuery, JobAnswer, JobQuery, JobsAnswer,
    JobsQuery, LeaderAnswer, LeaderQuery, OperationsAnswer, OperationsQuery, PreviewQuery,
    ProcessorSummary, ProcessorsAnswer, ProcessorsQuery, ProjectAnswer, ProjectOrder, ProjectQuery,
    ProjectSummary, ProjectsAnswer, ProjectsQuery, RunsAnswer, RunsQuery, SchedulesAnswer,
    StatsAnswer, StatsQuery,
};

/// How long the state service that a question came to may take before all are asked.
const ANY_PATIENCE: Duration = Duration::from_millis(400);

/// A question without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No service answers the subject.
    #[error("no service answers {0}")]
    Away(&'static str),
    /// No answer came in time.
    #[error("{0} was not answered in time")]
    Late(&'static str),
    /// The answer is an error.
    #[error("{subject} was answered with an error: {why}")]
    Failed {
        /// The subject of the question.
        subject: &'static str,
        /// The service's words.
        why: String,
    },
}

/// The last message of EVENTS whose effects a client has seen. Cheap to clone; all clones share it.
///
/// Reads with it are monotonic across state replicas.
#[derive(Clone, Debug, Default)]
pub struct ReadToken(Arc<AtomicU64>);

impl ReadToken {
    /// The sequence of that message; 0 if there was none.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Records that a client has seen the effects of this message.
    pub fn note(&self, sequence: u64) {
        self.0.fetch_max(sequence, Ordering::AcqRel);
    }
}

impl Broker {
    /// Asks a service and waits up to `patience`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: &'static str,
        question: &Q,
        patience: Duration,
    ) -> Result<A, Error> {
        let (answer, _) = self.ask_with(subject, HeaderMap::new(), question, patience).await?;
        Ok(answer)
    }

    /// Asks a state service that knows EVENTS up to what was `seen`: any of them, and where that
    /// one does not answer, all. What the answer follows from counts as seen from here on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ask_state<Q: Serialize, A: DeserializeOwned>(
        &self,
        to: StateQuery,
        question: &Q,
        seen: &ReadToken,
        patience: Duration,
    ) -> Result<A, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(names::SEEN, seen.get().to_string());
        let first = self.ask_with(to.any, headers.clone(), question, ANY_PATIENCE).await;
        let (answer, known) = match first {
            Ok(answered) => answered,
            Err(error @ Error::Away(_)) => return Err(error),
            Err(_) => self.ask_with(to.all, headers, question, patience).await?,
        };
        seen.note(known);
        Ok(answer)
    }

    /// The answer, and up to which message of EVENTS the one who gave it knows.
    async fn ask_with<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: &'static str,
        headers: HeaderMap,
        question: &Q,
        patience: Duration,
    ) -> Result<(A, u64), Error> {
        let failed = |why: String| Error::Failed { subject, why };
        let payload = serde_json::to_vec(question).map_err(|error| failed(error.to_string()))?;
        let request = async_nats::Request::new();
        let request = request.headers(headers).payload(payload.into()).timeout(Some(patience));
        let answer = match self.client.send_request(subject, request).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => Error::Away(subject),
                    RequestErrorKind::TimedOut => Error::Late(subject),
                    _ => failed(error.to_string()),
                });
            }
        };
        if let Some(headers) = &answer.headers
            && let Some(why) = headers.get(async_nats::service::NATS_SERVICE_ERROR)
        {
            return Err(failed(why.to_string()));
        }
        let known = answer.headers.as_ref().and_then(names::seen).unwrap_or(0);
        let read = serde_json::from_slice(&answer.payload);
        read.map(|answer| (answer, known)).map_err(|error| failed(error.to_string()))
    }
}
