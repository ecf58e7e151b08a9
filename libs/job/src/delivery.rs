//! Webhooks: notifications of the ends of a project's jobs.
//!
//! A delivery is a job. It is decided together with the end that it reports, so that no crash can
//! separate the two. It is retried like any other job, in an internal project that belongs to the
//! user's project; the name of that project begins with a control character, so that no request can
//! use it. Deliveries have a queue and slots of their own: a slow receiver takes no turn from a
//! job, and a failing receiver gets fewer deliveries at once.

use std::{cmp::Reverse, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Backoff, Id, Job, JobId, JobType, Json, Limits, PriorityClass, Run, State, Status,
    event::{Ended, Enqueued, Event},
    internal::project_of,
    snapshot::Project,
    time::{Millis, rfc3339},
};

/// Deliveries to one receiver at the same time.
const AT_ONCE: u32 = 16;
/// The same, if the last delivery failed.
const AT_ONCE_FAILING: u32 = 2;
/// Pending deliveries of one receiver. Further ends are counted, not delivered: memory and bucket
/// are finite.
const PENDING_MAX: u64 = 10_000;
/// Attempts of a delivery where the project names no number.
const ATTEMPTS: u32 = 10;
/// The waits between them: 5 s, 20 s, 80 s, and so on, six hours at most; a day in all.
const RETRY: Backoff = Backoff { base_ms: 5_000, factor: 4.0, cap_ms: 6 * 3_600_000, jitter: 0.2 };

/// The deliveries to the receiver of a project, by status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Deliveries {
    /// Those that wait or are under way.
    pub pending: u64,
    /// Those that the receiver took.
    pub delivered: u64,
    /// Those that were given up.
    pub failed: u64,
    /// Ends without a delivery, because 10,000 were pending.
    pub dropped: u64,
    /// The error of the last attempt, if it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub last_error: Option<Id>,
}

/// The limits of a project of deliveries: no limit of its user's is meant for them.
pub(crate) fn limits(project: &Project) -> Limits {
    let max_concurrency = if project.failing { AT_ONCE_FAILING } else { AT_ONCE };
    Limits { max_concurrency, ..Limits::default() }
}

/// The receiver of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// The project has no webhook, or does not deliver this end.
    Nobody,
    /// The project's webhook.
    Listens,
    /// The project's webhook, had it not too much to hear already.
    Full,
}

/// The id of the delivery of a job's end in this run: always the same, and unique.
fn delivery_of(job: JobId, run: Run) -> JobId {
    const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let mixed = job.as_u128().wrapping_add(u128::from(run)).wrapping_mul(ODD);
    Uuid::new_v8((mixed ^ (mixed >> 64)).to_be_bytes())
}

#[derive(Serialize)]
struct Payload<'a> {
    r#type: &'a str,
    timestamp: String,
    data: Content<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    job_id: JobId,
    project_id: &'a Id,
    batch_id: &'a Id,
    r#type: JobType,
    status: Status,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Id>,
    tokens: Tokens,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Id>,
}

#[derive(Serialize)]
struct Tokens {
    input: u64,
    output: u64,
}

impl State {
    /// The delivery that belongs to this event, if it ends a job whose project has a receiver.
    pub fn delivery(&self, at: Millis, event: &Event) -> Option<Event> {
        let Event::Ended(ended) = event else { return None };
        if self.receiver(ended) != Receiver::Listens {
            return None;
        }
        let persisted = self.persisted.projects.get(&ended.labels.project)?;
        let webhook = persisted.settings.webhook.as_ref()?;
        let status = ended.to.status();
        Some(Event::Enqueued(Box::new(Enqueued {
            job: delivery_of(ended.job, ended.run),
            project: project_of(&ended.labels.project),
            batch: ended.labels.batch.clone(),
            job_type: JobType::Webhook,
            priority: 0,
            priority_class: PriorityClass::Low,
            max_attempts: webhook.max_attempts.unwrap_or(ATTEMPTS),
            own_attempts: true,
            retry: Some(webhook.retry.unwrap_or(RETRY)),
            run_at: None,
            expires_at: None,
            data: self.payload(at, ended, status),
            trace: None,
        })))
    }

    /// The receiver of this end, which is not applied yet.
    pub(crate) fn receiver(&self, ended: &Ended) -> Receiver {
        let status = ended.to.status();
        let persisted = self.persisted.projects.get(&ended.labels.project);
        let webhook = persisted.and_then(|persisted| persisted.settings.webhook.as_ref());
        let Some(webhook) = webhook.filter(|_| status.is_terminal()) else {
            return Receiver::Nobody;
        };
        if webhook.events.as_ref().is_some_and(|events| !events.contains(&status)) {
            return Receiver::Nobody;
        }
        if self.deliveries(&ended.labels.project).pending >= PENDING_MAX {
            return Receiver::Full;
        }
        Receiver::Listens
    }

    /// How the deliveries for a project stand.
    pub fn deliveries(&self, project: &str) -> Deliveries {
        let own = project_of(project);
        let Some(persisted) = self.persisted.projects.get(&own) else {
            return Deliveries::default();
        };
        let counts = &persisted.counts;
        let pending = counts.queued.iter().chain(counts.processing.iter()).sum();
        Deliveries {
            pending,
            delivered: counts.completed,
            failed: counts.failed,
            dropped: persisted.dropped,
            last_error: persisted.last_error.clone(),
        }
    }

    /// Deliveries for a project that wait or are under way, in no order, behind the first `skip`; and their number.
    pub fn pending_deliveries(
        &self,
        project: &str,
        skip: usize,
        limit: usize,
    ) -> (Vec<Arc<Job>>, usize) {
        let own = self.persisted.projects.get(&project_of(project));
        let ids = own.into_iter().flat_map(|own| own.live.after(None)).map(|(_, id)| id);
        let jobs = ids.skip(skip).take(limit).filter_map(|id| self.job(id)).collect();
        (jobs, own.map_or(0, |own| own.live.count(None, None)))
    }

    /// Deliveries for a project that were given up and are kept at `now`, the last one first, behind the first `skip`;
    /// and their number.
    pub fn failed_deliveries(
        &self,
        project: &str,
        skip: usize,
        limit: usize,
        now: Millis,
    ) -> (Vec<JobId>, usize) {
        let own = self.persisted.projects.get(&project_of(project));
        let failed = own.into_iter().flat_map(|own| &own.failed);
        let kept = failed.filter(|(_, until)| **until > now);
        let mut kept: Vec<(Reverse<Millis>, JobId)> =
            kept.map(|(id, until)| (Reverse(*until), *id)).collect();
        kept.sort_unstable();
        let total = kept.len();
        (kept.into_iter().skip(skip).take(limit).map(|(_, id)| id).collect(), total)
    }

    fn payload(&self, at: Millis, ended: &Ended, status: Status) -> Json {
        let mut usage =
            self.job(ended.job).map(|job| job.history().usage.clone()).unwrap_or_default();
        usage.add(&ended.usage);
        let told = Payload {
            r#type: match status {
                Status::Completed => "job.completed",
                Status::Failed => "job.failed",
                _ => "job.canceled",
            },
            timestamp: rfc3339(at),
            data: Content {
                job_id: ended.job,
                project_id: &ended.labels.project,
                batch_id: &ended.labels.batch,
                r#type: ended.labels.job_type,
                status,
                attempts: ended.labels.attempt,
                worker: ended.worker.as_ref(),
                error: ended.error.as_ref(),
                tokens: Tokens { input: usage.input_tokens, output: usage.output_tokens },
                model: usage.model,
            },
        };
        Json::of(&told).expect("texts and numbers are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        JobLabels, Position, RequeueReason, Settings, Usage,
        event::{Requeued, Transition},
        internal::{FAILED_MAX, FAILED_RETENTION_MS, RETENTION_MS, is_internal, receiver_of},
        webhook::Webhook,
    };

    fn told(settings: Settings) -> State {
        let mut state = State::new(1_000);
        let project = Id::from("p");
        let set = Event::ProjectSet { project: project.clone(), settings: Box::new(settings) };
        state.apply(1, Position::new(1, 0), &set);
        let new = Enqueued {
            job: JobId::from_u128(7),
            project,
            batch: "b".into(),
            job_type: JobType::ProcessBatch,
            priority: 10,
            priority_class: PriorityClass::Normal,
            max_attempts: 3,
            own_attempts: false,
            retry: None,
            run_at: None,
            expires_at: None,
            data: Json::default(),
            trace: None,
        };
        state.apply(1, Position::new(1, 1), &Event::Enqueued(Box::new(new)));
        state
    }

    fn end(state: &State, to: Transition) -> Event {
        let job = state.job(JobId::from_u128(7)).expect("it is live");
        Event::Ended(Box::new(Ended {
            job: job.id,
            labels: JobLabels::job(&job),
            run: 1,
            worker: None,
            started_at: None,
            finished_at: None,
            usage: Usage { input_tokens: 3, ..Usage::default() },
            doubtful: false,
            error: None,
            to,
        }))
    }

    fn webhook(events: Option<Vec<Status>>) -> Settings {
        let (url, secret) = ("https://example.com/".into(), "whsec_AAAA".into());
        let webhook =
            Webhook { url, secret, events, previous_secret: None, max_attempts: None, retry: None };
        Settings { webhook: Some(webhook), ..Settings::default() }
    }

    #[test]
    fn an_end_is_told_where_somebody_wants_it_and_counts_for_nobody_else() {
        let done = Transition::Completed { result: None, stored: None };
        let silent = told(Settings::default());
        assert_eq!(silent.delivery(5, &end(&silent, done.clone())), None);
        let failures = told(webhook(Some(vec![Status::Failed])));
        assert_eq!(failures.delivery(5, &end(&failures, done.clone())), None);
        assert!(failures.delivery(5, &end(&failures, Transition::Failed)).is_some());
        let mut all = told(webhook(None));
        let again = Requeued {
            why: RequeueReason::Retry,
            run: 2,
            attempts: 1,
            take_backs: 0,
            run_at: None,
        };
        assert_eq!(all.delivery(5, &end(&all, Transition::Queued(again))), None);

        let ended = end(&all, done);
        let delivery = all.delivery(5, &ended).expect("it is delivered");
        all.apply(5, Position::new(2, 0), &ended);
        all.apply(5, Position::new(2, 1), &delivery);
        let counts = all.counts(None);
        assert_eq!((counts.completed, counts.total()), (1, 1), "the delivery is not counted");
        assert_eq!(all.deliveries("p").pending, 1);
        let Event::Enqueued(delivery) = delivery else { panic!("it is a job") };
        let payload: serde_json::Value =
            serde_json::from_str(delivery.data.get()).expect("it is JSON");
        assert_eq!(payload["type"], "job.completed");
        assert_eq!(payload["data"]["tokens"]["input"], 3);
        assert_eq!(Event::Enqueued(delivery).change(), None, "subscribers of jobs do not see it");
    }

    /// Deliveries to a receiver that does not answer are bounded.
    #[test]
    fn what_waits_for_a_receiver_is_bounded_and_what_is_left_out_is_counted() {
        let mut state = told(webhook(None));
        let own = project_of("p");
        let counts = &mut state.persisted.projects.entry(own).or_default().counts;
        counts.queued[PriorityClass::Low] = PENDING_MAX;
        let ended = end(&state, Transition::Failed);
        assert_eq!(state.delivery(5, &ended), None);
        state.apply(5, Position::new(2, 0), &ended);
        assert_eq!(state.deliveries("p").dropped, 1);
    }

    /// A receiver that refuses everything fills neither memory nor the bucket.
    #[test]
    fn failed_deliveries_are_kept_in_a_bounded_number() {
        let mut state = told(webhook(None));
        let done = Transition::Completed { result: None, stored: None };
        let ended = end(&state, done);
        let Some(Event::Enqueued(first)) = state.delivery(5, &ended) else { panic!("it is told") };
        let mut jobs = Vec::new();
        for n in 0..=FAILED_MAX as u64 {
            let job = JobId::from_u128(u128::from(n) + 1_000);
            let delivery = Event::Enqueued(Box::new(Enqueued { job, ..(*first).clone() }));
            state.apply(5, Position::new(n + 2, 0), &delivery);
            let job = state.job(job).expect("it is pending");
            let Event::Ended(ended) = end(&state, Transition::Failed) else { panic!("an end") };
            let labels = JobLabels::job(&job);
            let failed = Ended { job: job.id, labels, ..*ended };
            state.apply(5, Position::new(n + 2, 1), &Event::Ended(Box::new(failed)));
            jobs.push(state.job(job.id).expect("the bucket does not have it yet"));
        }
        let (page, total) = state.failed_deliveries("p", 0, 50, 6);
        assert_eq!((page.len(), total), (50, FAILED_MAX));
        assert_eq!(state.deliveries("p").failed, FAILED_MAX as u64 + 1);
        assert_eq!(state.retention_of(&jobs[0]), FAILED_RETENTION_MS);
        assert_eq!(state.retention_of(&jobs[FAILED_MAX]), RETENTION_MS);
    }

    #[test]
    fn each_end_has_a_delivery_of_its_own() {
        let mut ids: Vec<JobId> = (0..100)
            .flat_map(|job| (1..10).map(move |run| delivery_of(JobId::from_u128(job << 40), run)))
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
        assert_eq!(receiver_of(&project_of("p")), Some("p"));
        assert!(!is_internal("webhook:p"));
    }
}
