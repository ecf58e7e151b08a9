//! Ready work, as a processor takes it: pulled for free slots only, run, recorded, acked.
//!
//! The order is "record, then ack". After a crash before the record, the message is redelivered;
//! the redelivery is reported and not run. A crash between record and ack has the same effect, and
//! state knows that the run has a result.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, Subject,
    jetstream::{
        self, AckKind, ErrorCode,
        consumer::{AckPolicy, PullConsumer, pull},
        stream::{ConsumerError, ConsumerErrorKind},
    },
};
use futures_util::StreamExt;
use job::{JobType, PriorityClass};
use tokio::time::timeout;

use crate::{Broker, names, rejected::Rejected, wire::Work};

/// How long the broker waits for a sign of life of a delivered run.
pub const ACK_WAIT: Duration = Duration::from_secs(10);
/// How often a processor gives that sign.
pub const EXTEND_EVERY: Duration = Duration::from_secs(3);
/// How long a pull waits at the broker for work.
const PULL_EXPIRES: Duration = Duration::from_secs(2);
/// How long the broker may take to say what is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Requests for work of a kind and class that wait at the same time: one of each processor.
const WAITING_MAX: i64 = 8_192;
/// Delivered and unacked runs over all processors: no limit of ours.
const ACK_PENDING_MAX: i64 = 100_000;

/// A failure to reach the consumers.
#[derive(Debug, thiserror::Error)]
#[error("work of class {class} could not be pulled: {why}")]
pub struct Error {
    class: &'static str,
    why: String,
}

/// A run in flight, with the right to ack it.
#[derive(Debug)]
pub struct Delivery {
    /// The work to run.
    pub work: Work,
    /// The class of the stream it came from.
    pub priority_class: PriorityClass,
    /// Its sequence in that stream.
    pub sequence: u64,
    /// Whether it was handed out before.
    pub redelivered: bool,
    /// How many wait behind it, of its class and kind.
    pub behind: u64,
    lease: Lease,
}

impl Delivery {
    /// Extends the ack lease of the run.
    pub async fn extend(&self) {
        self.lease.extend().await;
    }

    /// A handle that can extend the lease while the delivery is elsewhere.
    pub fn lease(&self) -> Lease {
        self.lease.clone()
    }

    /// Lets the broker forget the run. To be called after its end is recorded, never before.
    pub async fn ack(self) {
        self.lease.ack().await;
    }
}

/// Extends the lease of a delivery. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lease {
    client: Arc<Client>,
    reply: Subject,
}

impl Lease {
    /// Lets the broker forget the run.
    pub async fn ack(self) {
        self.say(AckKind::Ack).await;
    }

    /// Extends the ack lease of the run.
    pub async fn extend(&self) {
        self.say(AckKind::Progress).await;
    }

    async fn say(&self, what: AckKind) {
        // A lost lease extension is followed by the next one. A lost ack makes the message come
        // again: it is reported, and state ignores it.
        let _ = self.client.publish(self.reply.clone(), what.into()).await;
    }
}

/// The consumers of some kinds of work, over all classes.
#[derive(Clone, Debug)]
pub struct Pullers {
    broker: Broker,
    client: Arc<Client>,
    consumers: HashMap<(PriorityClass, JobType), PullConsumer>,
    job_types: Vec<JobType>,
    incarnations: Arc<Incarnations>,
}

/// Notices that a consumer was deleted and created again. The new one hands out everything unacked
/// as if for the first time, as a broker does that forgot its deliveries.
#[derive(Debug, Default)]
struct Incarnations {
    /// When each consumer was created, in ns since 1970.
    created: Mutex<HashMap<(PriorityClass, JobType), i128>>,
    replaced: AtomicU64,
}

impl Incarnations {
    fn note(&self, class: PriorityClass, job_type: JobType, consumer: &PullConsumer) {
        let created = consumer.cached_info().created.unix_timestamp_nanos();
        let mut known = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        if known.insert((class, job_type), created).is_some_and(|before| before != created) {
            tracing::warn!(
                class = class.name(),
                job_type = job_type.name(),
                "consumer was replaced"
            );
            self.replaced.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Pullers {
    /// Ensures the durable consumers of these kinds of work.
    ///
    /// # Errors
    /// If one cannot be created.
    pub async fn ensure(broker: &Broker, job_types: Vec<JobType>) -> Result<Self, Error> {
        let mut consumers = HashMap::new();
        let incarnations = Arc::<Incarnations>::default();
        for class in PriorityClass::ALL {
            for job_type in job_types.iter().filter(|job_type| is_of(**job_type, class)) {
                let consumer = ensure_consumer(&broker.js, class, *job_type).await?;
                incarnations.note(class, *job_type, &consumer);
                consumers.insert((class, *job_type), consumer);
            }
        }
        let (broker, client) = (broker.clone(), Arc::new(broker.client.clone()));
        Ok(Self { broker, client, consumers, job_types, incarnations })
    }

    /// Creates the consumer again if it was deleted, which can be the reason of any failed pull.
    async fn after_failure(&self, class: PriorityClass, job_type: JobType, error: Error) -> Error {
        match ensure_consumer(&self.broker.js, class, job_type).await {
            Ok(consumer) => self.incarnations.note(class, job_type, &consumer),
            Err(error) => tracing::debug!(%error, "consumer not ensured"),
        }
        error
    }

    /// How many times a consumer was found to be replaced by a new one of its name.
    pub fn replacements(&self) -> u64 {
        self.incarnations.replaced.load(Ordering::Acquire)
    }

    /// The kinds of work that are pulled.
    pub fn job_types(&self) -> &[JobType] {
        &self.job_types
    }

    /// The kinds of work that are pulled of a class.
    pub fn job_types_of(&self, class: PriorityClass) -> impl Iterator<Item = JobType> {
        self.job_types.iter().copied().filter(move |job_type| is_of(*job_type, class))
    }

    /// Takes up to `max` runs of a class and kind that are there now, without waiting.
    ///
    /// # Errors
    /// If the broker did not answer.
    pub async fn take(
        &self,
        class: PriorityClass,
        job_type: JobType,
        max: usize,
    ) -> Result<Vec<Delivery>, Error> {
        let Some(consumer) = self.consumers.get(&(class, job_type)) else { return Ok(Vec::new()) };
        let mut taken = Vec::new();
        match self.take_from(consumer, class, max, &mut taken).await {
            Ok(()) => Ok(taken),
            // Messages that were delivered before must not be dropped: this caller owns them now.
            Err(why) if !taken.is_empty() => {
                tracing::warn!(error = why, class = class.name(), "pull cut short");
                Ok(taken)
            }
            Err(why) => {
                let error = Error { class: class.name(), why };
                Err(self.after_failure(class, job_type, error).await)
            }
        }
    }

    /// Waits a few seconds for one run of this class and kind.
    ///
    /// # Errors
    /// If the broker did not answer.
    pub async fn wait(
        &self,
        class: PriorityClass,
        job_type: JobType,
    ) -> Result<Option<Delivery>, Error> {
        let Some(consumer) = self.consumers.get(&(class, job_type)) else { return Ok(None) };
        let pull = consumer.batch().max_messages(1).expires(PULL_EXPIRES).messages();
        let why = match pull.await {
            Err(error) => error.to_string(),
            Ok(mut messages) => match messages.next().await {
                None => return Ok(None),
                Some(Ok(message)) => return Ok(self.delivery(class, message).await),
                Some(Err(error)) => error.to_string(),
            },
        };
        let error = Error { class: class.name(), why };
        Err(self.after_failure(class, job_type, error).await)
    }

    /// Takes what one consumer has now.
    async fn take_from(
        &self,
        consumer: &PullConsumer,
        class: PriorityClass,
        max: usize,
        taken: &mut Vec<Delivery>,
    ) -> Result<(), String> {
        let fetch = consumer.fetch().max_messages(max).messages();
        let mut messages = fetch.await.map_err(|error| error.to_string())?;
        // A broker that dies in the middle never says that this is all there is.
        while let Ok(Some(message)) = timeout(ANSWER_WITHIN, messages.next()).await {
            let message = message.map_err(|error| error.to_string())?;
            taken.extend(self.delivery(class, message).await);
        }
        Ok(())
    }

    /// Reads a delivered message. One that cannot be read is set aside and acked: if it was a run, the
    /// state service finds it missing and dispatches it again.
    async fn delivery(
        &self,
        class: PriorityClass,
        message: jetstream::Message,
    ) -> Option<Delivery> {
        let info = match message.info() {
            Ok(info) => (info.stream_sequence, info.delivered > 1, info.pending),
            Err(error) => {
                tracing::error!(error = %error, "a message of ready work came without its place");
                return None;
            }
        };
        let lease = Lease { client: self.client.clone(), reply: message.reply.clone()? };
        match serde_json::from_slice(&message.payload) {
            Ok(work) => {
                let (sequence, redelivered, behind) = info;
                Some(Delivery { work, priority_class: class, sequence, redelivered, behind, lease })
            }
            Err(error) => {
                self.broker
                    .set_aside(&[Rejected {
                        stream: names::work_stream(class),
                        sequence: info.0,
                        subject: message.subject.to_string(),
                        reason: format!("ready work cannot be read: {error}"),
                        payload: message.payload.clone(),
                    }])
                    .await;
                lease.ack().await;
                None
            }
        }
    }
}

async fn ensure_consumer(
    js: &jetstream::Context,
    class: PriorityClass,
    job_type: JobType,
) -> Result<PullConsumer, Error> {
    let config = pull::Config {
        durable_name: Some(names::work_consumer(job_type).to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        filter_subject: names::work_filter(class, job_type),
        max_ack_pending: ACK_PENDING_MAX,
        // State counts attempts: a message given up by the broker would stay in the stream.
        max_deliver: -1,
        max_waiting: WAITING_MAX,
        ..Default::default()
    };
    let stream = names::work_stream(class);
    let ensured = match js.create_consumer_on_stream(config.clone(), stream).await {
        // An earlier version made it with NATS's own bound, which cannot be changed.
        Err(error) if is_fixed(&error) => {
            let config = pull::Config { max_waiting: 0, ..config };
            js.create_consumer_on_stream(config, stream).await
        }
        ensured => ensured,
    };
    ensured.map_err(|error| Error { class: class.name(), why: error.to_string() })
}

/// Whether a setting of a consumer that exists cannot be changed.
fn is_fixed(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(why) if why.error_code() == ErrorCode::CONSUMER_CREATE)
}

/// Whether work of a kind may be of a class: the mesh's own is of the lowest.
fn is_of(job_type: JobType, class: PriorityClass) -> bool {
    !job_type.is_internal() || class == PriorityClass::Low
}
