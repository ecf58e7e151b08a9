//! What a connection waits for and since when, as far as bytes and answers show it.

use std::{
    collections::BTreeMap,
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::{task::AbortHandle, time::Instant};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of its head.
    Head,
    /// The end of an answer.
    Answer,
}

/// The phase of a connection and since when, and since when its client takes no bytes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    phase: Phase,
    since: Instant,
    /// Since when the socket takes no bytes.
    stalled: Option<Instant>,
    /// The answers that are not complete.
    answers: BTreeMap<u64, Answer>,
    next_answer: u64,
}

/// An answer that is not complete.
#[derive(Debug)]
struct Answer {
    /// Since when the next part is not asked for. A client of HTTP/2 can take no bytes of one answer while the socket takes
    /// those of others.
    waiting: Option<Instant>,
    /// Ends this answer alone, if the version of HTTP can.
    task: Option<EndTask>,
}

/// What ends the task of a request, once it has started.
pub(super) type EndTask = Arc<OnceLock<AbortHandle>>;

impl Default for Inner {
    fn default() -> Self {
        Self {
            phase: Phase::Idle,
            since: Instant::now(),
            stalled: None,
            answers: BTreeMap::new(),
            next_answer: 0,
        }
    }
}

impl Inner {
    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }
}

impl Activity {
    /// Notes that requests can come from now on.
    pub fn begin(&self) {
        self.lock().enter(Phase::Idle);
    }

    /// Notes that a request has come; its answer is incomplete until the returned value is dropped.
    pub fn request(&self) -> PendingAnswer {
        let mut inner = self.lock();
        let id = inner.next_answer;
        inner.next_answer += 1;
        inner.answers.insert(id, Answer { waiting: None, task: None });
        inner.enter(Phase::Answer);
        PendingAnswer { activity: self.clone(), id }
    }

    /// The phase, and since when.
    pub fn current(&self) -> (Phase, Instant) {
        let inner = self.lock();
        (inner.phase, inner.since)
    }

    /// True if the socket has taken no bytes for this long.
    pub fn is_stalled(&self, within: Duration) -> bool {
        self.lock().stalled.is_some_and(|since| since.elapsed() > within)
    }

    /// Ends the answers of which the client has taken no bytes for this long, and that can be ended alone.
    pub fn end_stalled_answers(&self, within: Duration) {
        let is_stalled =
            |answer: &&Answer| answer.waiting.is_some_and(|since| since.elapsed() > within);
        // The lock is taken again when they are dropped.
        let stalled: Vec<EndTask> = {
            let inner = self.lock();
            let stalled = inner.answers.values().filter(is_stalled);
            stalled.filter_map(|answer| answer.task.clone()).collect()
        };
        stalled.iter().filter_map(|task| task.get()).for_each(AbortHandle::abort);
    }

    /// Notes that a part of a request came.
    pub fn received(&self) {
        let mut inner = self.lock();
        if inner.phase == Phase::Idle {
            inner.enter(Phase::Head);
        }
    }

    /// Notes whether bytes were taken.
    pub fn sent(&self, poll: &Poll<io::Result<usize>>) {
        let stalled = &mut self.lock().stalled;
        match poll {
            Poll::Pending => {
                stalled.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => *stalled = None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that is not complete. When the last one of a connection is dropped, the connection is idle.
#[derive(Debug)]
pub(super) struct PendingAnswer {
    activity: Activity,
    id: u64,
}

impl PendingAnswer {
    /// Notes what ends this answer alone, if there is such a task.
    pub fn ended_by(&self, task: Option<EndTask>) {
        if let Some(answer) = self.activity.lock().answers.get_mut(&self.id) {
            answer.task = task;
        }
    }

    fn waits_for_client(&self, since: Option<Instant>) {
        if let Some(answer) = self.activity.lock().answers.get_mut(&self.id) {
            answer.waiting = since;
        }
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        let mut inner = self.activity.lock();
        inner.answers.remove(&self.id);
        if inner.answers.is_empty() {
            inner.enter(Phase::Idle);
        }
    }
}

/// The body of an answer, in parts, which notes when they are asked for.
///
/// A part that was asked for has left this body whether its client takes it or not. Parts that are small bound what is
/// kept for a client that takes nothing.
pub(super) struct AnswerBody {
    body: Body,
    /// What is left of the last frame.
    rest: Bytes,
    /// Whether parts of that frame were given.
    is_rest: bool,
    part_bytes_max: usize,
    pending: PendingAnswer,
}

impl AnswerBody {
    pub fn new(body: Body, part_bytes_max: usize, pending: PendingAnswer) -> Self {
        Self { body, rest: Bytes::new(), is_rest: false, part_bytes_max, pending }
    }

    fn part(&mut self) -> Frame<Bytes> {
        if self.rest.len() > self.part_bytes_max {
            self.is_rest = true;
            return Frame::data(self.rest.split_to(self.part_bytes_max));
        }
        let rest = mem::take(&mut self.rest);
        // A part of a long frame would keep all of it in memory.
        let is_rest = mem::take(&mut self.is_rest);
        Frame::data(if is_rest { Bytes::copy_from_slice(&rest) } else { rest })
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.pending.waits_for_client(None);
        let frame = if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.rest = data;
                        Some(Ok(self.part()))
                    }
                    Err(trailers) => Some(Ok(trailers)),
                },
                ended => ended,
            }
        } else {
            Some(Ok(self.part()))
        };
        self.pending.waits_for_client(Some(Instant::now()));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;

    #[tokio::test]
    async fn answer_that_a_client_does_not_take_is_ended_alone() {
        let activity = Activity::default();
        let task = |answer: PendingAnswer| {
            tokio::spawn(async move {
                let mut body = AnswerBody::new(Body::from("a long text"), 4, answer);
                assert_eq!(body.size_hint().exact(), Some(11));
                let first = body.frame().await.expect("it has a text").expect("it is in memory");
                assert_eq!(
                    (first.into_data().expect("text"), body.is_end_stream()),
                    ("a lo".into(), false)
                );
                std::future::pending::<()>().await;
            })
        };
        let (first, second) = (activity.request(), activity.request());
        let stalled = task(first);
        let end = EndTask::default();
        end.set(stalled.abort_handle()).expect("it is empty");
        activity.lock().answers.get_mut(&0).expect("the first").task = Some(end);
        let other = tokio::spawn(async move {
            let _second = second;
            std::future::pending::<()>().await;
        });
        while activity.lock().answers[&0].waiting.is_none() {
            tokio::task::yield_now().await;
        }
        activity.end_stalled_answers(Duration::from_secs(3600));
        assert!(!stalled.is_finished(), "it has an hour");
        activity.end_stalled_answers(Duration::ZERO);
        assert!(stalled.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(activity.current().0, Phase::Answer, "another answer is incomplete");
        other.abort();
        assert!(other.await.is_err());
        assert_eq!(activity.current().0, Phase::Idle);
    }

    #[tokio::test]
    async fn parts_make_up_the_body() {
        let activity = Activity::default();
        let body = AnswerBody::new(Body::from("a long text"), 4, activity.request());
        let collected = body.collect().await.expect("it is in memory");
        assert_eq!(collected.to_bytes(), "a long text");
    }

    #[test]
    fn connection_is_idle_after_its_last_answer() {
        let activity = Activity::default();
        let (first, second) = (activity.request(), activity.request());
        drop(second);
        assert_eq!(activity.current().0, Phase::Answer);
        drop(first);
        assert_eq!(activity.current().0, Phase::Idle);
        activity.received();
        assert_eq!(activity.current().0, Phase::Head);
    }
}
