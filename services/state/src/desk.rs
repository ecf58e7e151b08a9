//! Questions to a state service, leading or not.
//!
//! What any replica knows is asked of one of them; it answers once it has followed EVENTS up to
//! what the one who asks has heard of. Where that takes too long, all are asked, and whoever
//! knows enough answers first. What only the leader knows is asked of all, and only a leader
//! whose lease is fresh answers: one that was frozen does not speak before it knows its place.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    HeaderMap,
    service::{Request, Service, ServiceExt, error::Error as Refusal},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use job::{Limits, State, time::Millis};
use mesh::{
    Broker,
    ask::{
        AskJob, AskJobs, AskProject, AskRuns, AskStats, JobAnswer, JobsAnswer, ProjectAnswer,
        RunsAnswer, SchedulesAnswer, StatsAnswer,
    },
    names::{self, StateQuestion},
    presence::{Presence, Roll},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::clock::Clock;

/// Questions that wait to be looked at.
const WAITING_MAX: usize = 1_024;
/// How long a question may wait for this replica to know enough.
const KNOW_WITHIN: Duration = Duration::from_millis(250);

/// Jobs of one list.
const LISTED_MAX: usize = 1_000;

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum About {
    Job,
    Stats,
    Project,
    Schedules,
    Jobs,
    /// Which runs a processor may begin: for the leader.
    Claim,
    /// Which runs must not go on: for the leader.
    Current,
}

/// One question.
pub(crate) struct Question {
    about: About,
    via: Via,
    came_at: Instant,
}

/// How it came, and how it is answered.
enum Via {
    /// To this one of all replicas.
    Any(Request),
    /// To all replicas.
    All(async_nats::Message),
}

impl Question {
    fn message(&self) -> &async_nats::Message {
        match &self.via {
            Via::Any(request) => &request.message,
            Via::All(message) => message,
        }
    }

    /// The last message of EVENTS that the one who asks has heard of.
    fn seen(&self) -> u64 {
        self.message().headers.as_ref().and_then(names::seen).unwrap_or(0)
    }
}

/// Takes questions and presence in, for as long as it lives.
pub(crate) struct Desk {
    broker: Broker,
    questions: mpsc::Receiver<Question>,
    presence: async_nats::Subscriber,
    service: Service,
    /// Questions that this replica does not know enough for yet.
    early: Vec<Question>,
    /// The processors that were heard of lately.
    pub roll: Roll,
}

/// Something that came in.
pub(crate) enum Came {
    Question(Box<Question>),
    Presence(Bytes),
}

impl Desk {
    /// Opens the desk, and asks processors to say that they are there.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let (sender, questions) = mpsc::channel(WAITING_MAX);
        let presence = broker.client.subscribe(names::PRESENCE_ALL).await?;
        let builder = broker.client.service_builder().description("Status and counts of jobs");
        let service = builder.start("state", env!("CARGO_PKG_VERSION")).await;
        let service = service.map_err(|error| anyhow::anyhow!("no questions heard: {error}"))?;
        for (about, question) in [
            (About::Job, names::ASK_JOB),
            (About::Stats, names::ASK_STATS),
            (About::Project, names::ASK_PROJECT),
            (About::Schedules, names::ASK_SCHEDULES),
            (About::Jobs, names::ASK_JOBS),
        ] {
            listen_to_any(&service, &sender, about, question).await?;
            listen_to_all(broker, &sender, about, question.all).await?;
        }
        listen_to_all(broker, &sender, About::Claim, names::ASK_CLAIM).await?;
        listen_to_all(broker, &sender, About::Current, names::ASK_CURRENT).await?;
        broker.client.publish(names::CONTROL_ROLL_CALL, "".into()).await?;
        let broker = broker.clone();
        let (early, roll) = (Vec::new(), Roll::default());
        Ok(Self { broker, questions, presence, service, early, roll })
    }

    /// What comes in next. Safe to be cancelled.
    pub async fn next(&mut self) -> Came {
        loop {
            tokio::select! {
                Some(question) = self.questions.recv() => {
                    return Came::Question(Box::new(question));
                }
                Some(message) = self.presence.next() => return Came::Presence(message.payload),
                else => std::future::pending::<()>().await,
            }
        }
    }

    /// What has come in already.
    pub fn try_next(&mut self) -> Option<Came> {
        if let Some(Some(message)) = self.presence.next().now_or_never() {
            return Some(Came::Presence(message.payload));
        }
        self.questions.try_recv().ok().map(|question| Came::Question(Box::new(question)))
    }

    /// Takes in what a processor said of itself.
    pub fn note_presence(&mut self, payload: &[u8]) {
        match serde_json::from_slice::<Presence>(payload) {
            Ok(said) => {
                self.roll.note(said, Instant::now());
            }
            Err(error) => tracing::warn!(error = %error, "presence could not be read"),
        }
    }

    /// Takes in every heartbeat that has arrived.
    pub fn drain_presence(&mut self) {
        while let Some(Some(message)) = self.presence.next().now_or_never() {
            self.note_presence(&message.payload);
        }
    }

    /// Answers a question, or keeps it until this replica knows enough.
    pub async fn take(&mut self, question: Box<Question>, known: &mut Known<'_>) {
        if known.state.position().sequence < question.seen() {
            self.early.push(*question);
        } else {
            self.answer(*question, known).await;
        }
    }

    /// Looks again at the questions that came too early.
    pub async fn look_again(&mut self, known: &mut Known<'_>) {
        for question in std::mem::take(&mut self.early) {
            if known.state.position().sequence >= question.seen() {
                self.answer(question, known).await;
            } else if question.came_at.elapsed() < KNOW_WITHIN {
                self.early.push(question);
            } else if let Via::Any(request) = question.via {
                // Who asks then asks all.
                let behind = Refusal { code: 503, status: "this replica is behind".into() };
                let _ = request.respond(Err(behind)).await;
            }
        }
    }

    /// Answers nothing from here on.
    pub async fn close(self) {
        let _ = self.service.stop().await;
    }

    async fn answer(&self, question: Question, known: &mut Known<'_>) {
        let payload = &question.message().payload;
        let answer = match question.about {
            About::Job => reply(payload, |ask| known.job(&ask)),
            About::Stats => reply(payload, |ask| known.stats(&ask, &self.roll)),
            About::Project => reply(payload, |ask| known.project(&ask)),
            About::Schedules => reply(payload, |ask| known.schedules(&ask)),
            About::Jobs => reply(payload, |ask| known.jobs(&ask)),
            About::Claim | About::Current if !known.leads => return,
            About::Claim => reply(payload, |ask| known.claim(&ask, &self.roll)),
            About::Current => reply(payload, |ask| known.not_current(&ask)),
        };
        let mut headers = HeaderMap::new();
        headers.insert(names::SEEN, known.state.position().sequence.to_string());
        // Who asked and is gone needs no answer.
        match (question.via, answer) {
            (Via::Any(request), answer) => {
                let _ = request.respond_with_headers(answer, headers).await;
            }
            (Via::All(message), Ok(answer)) => {
                if let Some(inbox) = message.reply {
                    let client = &self.broker.client;
                    let _ = client.publish_with_headers(inbox, headers, answer).await;
                }
            }
            (Via::All(message), Err(error)) => {
                tracing::warn!(subject = %message.subject, error = error.status, "not answered");
            }
        }
    }
}

async fn listen_to_any(
    service: &Service,
    questions: &mpsc::Sender<Question>,
    about: About,
    question: StateQuestion,
) -> anyhow::Result<()> {
    let name = question.any.rsplit('.').next().unwrap_or(question.any);
    let endpoint = service.endpoint_builder().name(name).add(question.any).await;
    let mut endpoint =
        endpoint.map_err(|error| anyhow::anyhow!("{} cannot be heard: {error}", question.any))?;
    let questions = questions.clone();
    tokio::spawn(async move {
        while let Some(request) = endpoint.next().await {
            let question = Question { about, via: Via::Any(request), came_at: Instant::now() };
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
    about: About,
    subject: &'static str,
) -> anyhow::Result<()> {
    let mut messages = broker.client.subscribe(subject).await?;
    let questions = questions.clone();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let question = Question { about, via: Via::All(message), came_at: Instant::now() };
            if questions.send(question).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// What answers are made from.
pub(crate) struct Known<'a> {
    pub state: &'a mut State,
    pub rules: &'a job::Config,
    pub clock: &'a Clock,
    /// Whether this replica leads, and has lately made sure of it.
    pub leads: bool,
}

impl Known<'_> {
    fn now(&self) -> Millis {
        self.clock.now(self.state.at())
    }

    fn job(&self, ask: &AskJob) -> JobAnswer {
        let job = self.state.job(ask.job).map(|job| {
            let max_attempts = self.state.max_attempts(&job);
            let mut job = Arc::unwrap_or_clone(job);
            job.max_attempts = max_attempts;
            job
        });
        JobAnswer { job, through: self.state.through() }
    }

    fn stats(&mut self, ask: &AskStats, roll: &Roll) -> StatsAnswer {
        let now = self.now();
        self.state.wake(now);
        let project = ask.project.as_deref();
        let limits = project.map_or_else(Limits::default, |project| {
            self.state.settings(project).limits(&self.rules.limits)
        });
        let now = Instant::now();
        StatsAnswer {
            counts: self.state.counts(project),
            scheduled: self.state.scheduled(project),
            processors: roll.live(now).filter(|said| said.takes_jobs()).count() as u64,
            capacity: roll.capacity(now).total as u64,
            limits,
            position: self.state.position(),
        }
    }

    fn project(&self, ask: &AskProject) -> ProjectAnswer {
        let mut settings = self.state.settings(&ask.project).or(self.rules);
        settings.forget_secrets();
        let usage = self.state.usage(&ask.project, self.now());
        ProjectAnswer { settings, usage, deliveries: self.state.deliveries(&ask.project) }
    }

    fn schedules(&self, ask: &AskProject) -> SchedulesAnswer {
        let schedules = self.state.schedules(&ask.project);
        let schedules = schedules.map(|(name, timed)| (name.clone(), timed.clone())).collect();
        SchedulesAnswer { schedules }
    }

    fn jobs(&self, ask: &AskJobs) -> JobsAnswer {
        let limit = ask.limit.min(LISTED_MAX);
        let (jobs, next) = self.state.live_page(
            &ask.project,
            ask.batch.as_ref(),
            ask.before,
            limit,
            ask.status,
            ask.kind,
        );
        let jobs = jobs.into_iter().map(|job| {
            let max_attempts = self.state.max_attempts(&job);
            let mut job = Arc::unwrap_or_clone(job).without_data();
            job.max_attempts = max_attempts;
            job
        });
        let live = ask
            .live
            .iter()
            .copied()
            .filter(|id| self.state.job(*id).is_some_and(|job| !job.status.is_terminal()));
        let (jobs, live) = (jobs.collect(), live.collect());
        JobsAnswer { jobs, next, live, event: self.state.position().sequence }
    }

    /// The runs that a processor which found them in its stream may run: those that nobody is
    /// known to have begun.
    fn claim(&self, ask: &AskRuns, roll: &Roll) -> RunsAnswer {
        let now = Instant::now();
        let free = |(job, run): &(job::JobId, job::Run)| {
            let queued = self
                .state
                .job(*job)
                .is_some_and(|job| job.run == *run && job.status == job::Status::Queued);
            let holder = roll.holder(*job, *run, now);
            queued && holder.is_none_or(|holder| **holder == *ask.processor)
        };
        RunsAnswer { runs: ask.runs.iter().copied().filter(free).collect() }
    }

    /// The runs that must not go on.
    fn not_current(&self, ask: &AskRuns) -> RunsAnswer {
        let stale = |(job, run): &(job::JobId, job::Run)| {
            let current = self.state.job(*job);
            current.is_none_or(|job| job.run != *run || job.status.is_terminal())
        };
        RunsAnswer { runs: ask.runs.iter().copied().filter(stale).collect() }
    }
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
