//! Questions that the leader answers from memory.

use std::time::Instant;

use async_nats::service::{Request, ServiceExt, error::Error as Refusal};
use futures_util::StreamExt;
use job::Limits;
use mesh::{
    Broker,
    ask::{
        AskJob, AskProject, AskRuns, AskStats, JobAnswer, ProjectAnswer, RunsAnswer, StatsAnswer,
    },
    names,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::leader::Leader;

/// Questions that wait for the leader.
const WAITING_MAX: usize = 1_024;

/// One question.
pub(crate) struct Question {
    subject: &'static str,
    request: Request,
}

/// Listens for questions for as long as the returned receiver and service live.
pub(crate) async fn listen(
    broker: &Broker,
) -> anyhow::Result<(mpsc::Receiver<Question>, async_nats::service::Service)> {
    let (questions, waiting) = mpsc::channel(WAITING_MAX);
    let builder = broker.client.service_builder().description("Status and counts of jobs");
    let service = builder.start("state", env!("CARGO_PKG_VERSION")).await;
    let service = service.map_err(|error| anyhow::anyhow!("no questions can be heard: {error}"))?;
    for subject in
        [names::ASK_JOB, names::ASK_STATS, names::ASK_PROJECT, names::ASK_CLAIM, names::ASK_CURRENT]
    {
        let name = subject.rsplit('.').next().unwrap_or(subject);
        let endpoint = service.endpoint_builder().name(name).add(subject).await;
        let mut endpoint =
            endpoint.map_err(|error| anyhow::anyhow!("{subject} cannot be heard: {error}"))?;
        let questions = questions.clone();
        tokio::spawn(async move {
            while let Some(request) = endpoint.next().await {
                if questions.send(Question { subject, request }).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok((waiting, service))
}

impl Leader {
    /// Answers one question.
    pub(crate) async fn answer(&mut self, question: Question) {
        let payload = &question.request.message.payload;
        let answer = match question.subject {
            names::ASK_JOB => reply(payload, |ask: AskJob| JobAnswer { job: self.job(ask.job) }),
            names::ASK_STATS => reply(payload, |ask: AskStats| self.stats(ask.project.as_deref())),
            names::ASK_PROJECT => reply(payload, |ask: AskProject| self.project(&ask.project)),
            names::ASK_CLAIM => reply(payload, |ask: AskRuns| self.claim(&ask)),
            _ => reply(payload, |ask: AskRuns| self.not_current(&ask)),
        };
        // Who asked and is gone needs no answer.
        let _ = question.request.respond(answer).await;
    }

    fn stats(&mut self, project: Option<&str>) -> StatsAnswer {
        self.state.wake(service::now_ms());
        let now = Instant::now();
        StatsAnswer {
            counts: self.state.counts(project),
            scheduled: self.state.scheduled(project),
            processors: self.roll.live(now).count() as u64,
            capacity: self.roll.capacity(now).total as u64,
            limits: project.map_or_else(Limits::default, |project| {
                self.state.settings(project).limits(&self.rules.limits)
            }),
            position: self.state.position(),
        }
    }

    fn job(&self, id: job::JobId) -> Option<job::Job> {
        let mut job = self.state.job(id)?.clone();
        job.max_attempts = self.state.max_attempts(&job);
        Some(job)
    }

    fn project(&self, project: &str) -> ProjectAnswer {
        let now = service::now_ms().max(self.state.at());
        let settings = self.state.settings(project).or(&self.rules);
        ProjectAnswer { settings, usage: self.state.usage(project, now) }
    }

    /// The runs that a processor which found them in its stream may run: those that nobody is
    /// known to have begun.
    fn claim(&self, ask: &AskRuns) -> RunsAnswer {
        let now = Instant::now();
        let free = |(job, run): &(job::JobId, job::Run)| {
            let queued = self
                .state
                .job(*job)
                .is_some_and(|job| job.run == *run && job.status == job::Status::Queued);
            let holder = self.roll.holder(*job, *run, now);
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
) -> Result<bytes::Bytes, Refusal> {
    let refusal =
        |code: usize, error: serde_json::Error| Refusal { code, status: error.to_string() };
    let question = serde_json::from_slice(payload).map_err(|error| refusal(400, error))?;
    let answer = serde_json::to_vec(&answer(question)).map_err(|error| refusal(500, error))?;
    Ok(answer.into())
}
