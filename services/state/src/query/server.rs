//! Receives questions and heartbeats.
//!
//! A query that any replica can answer goes to one of them, which answers once it has applied the
//! events that the client has seen. If that takes too long, all replicas are asked, and the first
//! that is up to date answers. A query that only the leader can answer goes to all, and only a
//! leader with a fresh lease answers: one that was frozen must check its lease first.

use std::time::{Duration, Instant};

use async_nats::{
    HeaderMap,
    service::{Request, Service, ServiceExt, error::Error as Refusal},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use nats::{
    Broker,
    heartbeat::{Heartbeat, WorkerRegistry},
    names::{self, StateQuery},
    presence,
    query::{DemandQuery, LeaderQuery, ProcessorsQuery},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use super::handlers::QueryContext;

/// Questions that wait to be looked at.
const QUERIES_WAITING_MAX: usize = 1_024;
/// How long a question may wait for this replica to know enough.
const KNOW_WITHIN: Duration = Duration::from_millis(250);

/// How long the end of the subscriptions may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum QueryKind {
    Job,
    Stats,
    Project,
    Schedules,
    Jobs,
    Projects,
    Processors,
    Deliveries,
    Demand,
    Operations,
    Preview,
    /// Which runs a processor may begin: for the leader.
    Claim,
    /// Which runs must not go on: for the leader.
    Current,
    /// Which replica leads: for the leader.
    Leader,
}

/// One question.
pub(crate) struct Question {
    kind: QueryKind,
    via: Transport,
    came_at: Instant,
}

/// How it came, and how it is answered.
enum Transport {
    /// To this one of all replicas.
    Any(Request),
    /// To all replicas.
    All(async_nats::Message),
}

impl Question {
    fn message(&self) -> &async_nats::Message {
        match &self.via {
            Transport::Any(request) => &request.message,
            Transport::All(message) => message,
        }
    }

    /// The last message of EVENTS that the client has seen.
    fn seen(&self) -> u64 {
        self.message().headers.as_ref().and_then(names::seen).unwrap_or(0)
    }
}

/// Receives queries and heartbeats.
pub(crate) struct QueryServer {
    broker: Broker,
    questions: mpsc::Receiver<Question>,
    heartbeat: async_nats::Subscriber,
    service: Service,
    /// Questions that this replica does not know enough for yet.
    waiting: Vec<Question>,
    /// The processors with recent heartbeats.
    pub workers: WorkerRegistry,
}

/// Something that came in.
pub(crate) enum Incoming {
    Question(Box<Question>),
    Heartbeat(Bytes),
}

impl QueryServer {
    /// Starts to receive queries, and requests a heartbeat of every processor.
    pub async fn open(broker: &Broker, name: &str) -> anyhow::Result<Self> {
        let (sender, questions) = mpsc::channel(QUERIES_WAITING_MAX);
        let heartbeat = broker.client.subscribe(names::HEARTBEATS).await?;
        let builder =
            broker.client.service_builder().metadata(presence::metadata(name, &service::VERSION));
        let builder = builder.description("Status and counts of jobs");
        let service = builder.start("state", env!("CARGO_PKG_VERSION")).await;
        let service = service.map_err(|error| anyhow::anyhow!("no questions heard: {error}"))?;
        for (kind, question) in [
            (QueryKind::Job, names::QUERY_JOB),
            (QueryKind::Stats, names::QUERY_STATS),
            (QueryKind::Project, names::QUERY_PROJECT),
            (QueryKind::Schedules, names::QUERY_SCHEDULES),
            (QueryKind::Jobs, names::QUERY_JOBS),
            (QueryKind::Projects, names::QUERY_PROJECTS),
            (QueryKind::Processors, names::QUERY_PROCESSORS),
            (QueryKind::Deliveries, names::QUERY_DELIVERIES),
            (QueryKind::Demand, names::QUERY_DEMAND),
            (QueryKind::Operations, names::QUERY_OPERATIONS),
            (QueryKind::Preview, names::QUERY_PREVIEW),
        ] {
            listen_to_any(&service, &sender, kind, question).await?;
            listen_to_all(broker, &sender, kind, question.all).await?;
        }
        listen_to_all(broker, &sender, QueryKind::Claim, names::QUERY_CLAIM).await?;
        listen_to_all(broker, &sender, QueryKind::Current, names::QUERY_CURRENT).await?;
        listen_to_all(broker, &sender, QueryKind::Leader, names::QUERY_LEADER).await?;
        broker.client.publish(names::CONTROL_HEARTBEAT_REQUEST, "".into()).await?;
        let broker = broker.clone();
        let (waiting, workers) = (Vec::new(), WorkerRegistry::default());
        Ok(Self { broker, questions, heartbeat, service, waiting, workers })
    }

    /// What comes in next. Safe to be cancelled.
    pub async fn next(&mut self) -> Incoming {
        loop {
            tokio::select! {
                Some(question) = self.questions.recv() => {
                    return Incoming::Question(Box::new(question));
                }
                Some(message) = self.heartbeat.next() => return Incoming::Heartbeat(message.payload),
                else => std::future::pending::<()>().await,
            }
        }
    }

    /// What has come in already.
    pub fn try_next(&mut self) -> Option<Incoming> {
        if let Some(Some(message)) = self.heartbeat.next().now_or_never() {
            return Some(Incoming::Heartbeat(message.payload));
        }
        self.questions.try_recv().ok().map(|question| Incoming::Question(Box::new(question)))
    }

    /// Records a heartbeat.
    pub fn note_heartbeat(&mut self, payload: &[u8]) {
        match serde_json::from_slice::<Heartbeat>(payload) {
            Ok(said) => {
                self.workers.note(said, Instant::now());
            }
            Err(error) => tracing::warn!(error = %error, "heartbeat could not be read"),
        }
    }

    /// Takes in every heartbeat that has arrived.
    pub fn drain_heartbeats(&mut self) {
        while let Some(Some(message)) = self.heartbeat.next().now_or_never() {
            self.note_heartbeat(&message.payload);
        }
    }

    /// Answers a question, or keeps it until this replica knows enough.
    pub async fn take(&mut self, question: Box<Question>, context: &mut QueryContext<'_>) {
        if context.state.position().sequence < question.seen() {
            self.waiting.push(*question);
        } else {
            self.answer(*question, context).await;
        }
    }

    /// Keeps a question until [`look_again`](Self::look_again).
    pub fn keep(&mut self, question: Box<Question>) {
        self.waiting.push(*question);
    }

    /// Looks again at the questions that came too early.
    pub async fn look_again(&mut self, context: &mut QueryContext<'_>) {
        for question in std::mem::take(&mut self.waiting) {
            if context.state.position().sequence >= question.seen() {
                self.answer(question, context).await;
            } else if question.came_at.elapsed() < KNOW_WITHIN {
                self.waiting.push(question);
            } else if let Transport::Any(request) = question.via {
                refuse(request, "this replica is behind").await;
            }
        }
    }

    /// Lets clients ask another replica: this one is paused.
    pub async fn refuse(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Heartbeat(payload) => self.note_heartbeat(&payload),
            Incoming::Question(question) => {
                if let Transport::Any(request) = question.via {
                    refuse(request, "this replica is paused").await;
                }
            }
        }
    }

    /// Answers nothing from here on.
    pub async fn close(self) {
        // While the broker is away, no question arrives.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.service.stop()).await;
    }

    async fn answer(&self, question: Question, context: &mut QueryContext<'_>) {
        let payload = &question.message().payload;
        let answer = match question.kind {
            QueryKind::Job => reply(payload, |query| context.job(&query)),
            QueryKind::Stats => reply(payload, |query| context.stats(&query, &self.workers)),
            QueryKind::Project => reply(payload, |query| context.project(&query)),
            QueryKind::Schedules => reply(payload, |query| context.schedules(&query)),
            QueryKind::Jobs => reply(payload, |query| context.jobs(&query)),
            QueryKind::Projects => reply(payload, |query| context.projects(&query)),
            QueryKind::Deliveries => reply(payload, |query| context.deliveries(&query)),
            QueryKind::Demand => reply(payload, |DemandQuery {}| context.demand(&self.workers)),
            QueryKind::Operations => reply(payload, |query| context.operations(&query)),
            QueryKind::Preview => reply(payload, |query| context.preview(&query)),
            QueryKind::Processors => {
                reply(payload, |ProcessorsQuery {}| context.processors(&self.workers))
            }
            QueryKind::Claim | QueryKind::Current | QueryKind::Leader if !context.leads => return,
            QueryKind::Leader => reply(payload, |LeaderQuery {}| context.leader(&self.workers)),
            QueryKind::Claim => reply(payload, |query| context.claim(&query, &self.workers)),
            QueryKind::Current => reply(payload, |query| context.not_current(&query)),
        };
        let mut headers = HeaderMap::new();
        headers.insert(names::SEEN, context.state.position().sequence.to_string());
        // The requester may be offline.
        match (question.via, answer) {
            (Transport::Any(request), answer) => {
                let _ = request.respond_with_headers(answer, headers).await;
            }
            (Transport::All(message), Ok(answer)) => {
                if let Some(inbox) = message.reply {
                    let client = &self.broker.client;
                    let _ = client.publish_with_headers(inbox, headers, answer).await;
                }
            }
            (Transport::All(message), Err(error)) => {
                tracing::warn!(subject = %message.subject, error = error.status, "not answered");
            }
        }
    }
}

async fn listen_to_any(
    service: &Service,
    questions: &mpsc::Sender<Question>,
    kind: QueryKind,
    question: StateQuery,
) -> anyhow::Result<()> {
    let name = question.any.rsplit('.').next().unwrap_or(question.any);
    let endpoint = service.endpoint_builder().name(name).add(question.any).await;
    let mut endpoint =
        endpoint.map_err(|error| anyhow::anyhow!("{} cannot be heard: {error}", question.any))?;
    let questions = questions.clone();
    tokio::spawn(async move {
        while let Some(request) = endpoint.next().await {
            let question = Question { kind, via: Transport::Any(request), came_at: Instant::now() };
            if questions.send(question).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

async fn listen_to_all(
    broker: &Broker,
    questions: &mpsc::Sender<Question>,
    kind: QueryKind,
    subject: &'static str,
) -> anyhow::Result<()> {
    let mut messages = broker.client.subscribe(subject).await?;
    let questions = questions.clone();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let question = Question { kind, via: Transport::All(message), came_at: Instant::now() };
            if questions.send(question).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Refuses a query: the client then asks all replicas.
async fn refuse(request: Request, status: &str) {
    // The client may be offline.
    let _ = request.respond(Err(Refusal { code: 503, status: status.into() })).await;
}

fn reply<Q: DeserializeOwned, A: Serialize>(
    payload: &[u8],
    answer: impl FnOnce(Q) -> A,
) -> Result<Bytes, Refusal> {
    let refusal =
        |code: usize, error: serde_json::Error| Refusal { code, status: error.to_string() };
    let question = serde_json::from_slice(payload).map_err(|error| refusal(400, error))?;
    let answer = serde_json::to_vec(&answer(question)).map_err(|error| refusal(500, error))?;
    Ok(answer.into())
}
