//! What a connection waits for and since when, as far as bytes and answers show it.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::Body;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    /// The answers that are not complete: since when the next part is not asked for. A client of HTTP/2 can take no
    /// bytes of one answer while the socket takes those of others.
    answers: BTreeMap<u64, Option<Instant>>,
    next_answer: u64,
}

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
    /// Notes that a request has come; its answer is incomplete until the returned value is dropped.
    pub fn request(&self) -> PendingAnswer {
        let mut inner = self.lock();
        let id = inner.next_answer;
        inner.next_answer += 1;
        inner.answers.insert(id, None);
        inner.enter(Phase::Answer);
        PendingAnswer { activity: self.clone(), id }
    }

    /// The phase, and since when.
    pub fn current(&self) -> (Phase, Instant) {
        let inner = self.lock();
        (inner.phase, inner.since)
    }

    /// True if the client has taken no bytes, or none of some answer, for this long.
    pub fn is_stalled(&self, within: Duration) -> bool {
        let inner = self.lock();
        let mut waiting = inner.answers.values().flatten().chain(&inner.stalled);
        waiting.any(|since| since.elapsed() > within)
    }

    /// Notes that bytes came.
    fn received(&self) {
        let mut inner = self.lock();
        if inner.phase == Phase::Idle {
            inner.enter(Phase::Head);
        }
    }

    /// Notes whether bytes were taken.
    fn sent(&self, poll: &Poll<io::Result<usize>>) {
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
    fn waits_for_client(&self, since: Option<Instant>) {
        self.activity.lock().answers.insert(self.id, since);
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

/// The body of an answer, which notes when its parts are asked for.
pub(super) struct AnswerBody {
    pub body: Body,
    pub pending: PendingAnswer,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.pending.waits_for_client(None);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.pending.waits_for_client(Some(Instant::now()));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes what it receives and sends.
pub(super) struct Watched<S> {
    pub stream: S,
    pub activity: Activity,
    /// Whether the first byte after an answer begins the head of a request: HTTP/2 has other messages too.
    pub bytes_are_heads: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.bytes_are_heads && buf.filled().len() > before {
            self.activity.received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.sent(&sent);
        sent
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.activity.sent(&sent);
        sent
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn answer_is_stalled_while_a_client_asks_for_no_more_of_it() {
        let activity = Activity::default();
        let (_other, pending) = (activity.request(), activity.request());
        let mut answer = AnswerBody { body: Body::from("text"), pending };
        assert!(!activity.is_stalled(Duration::ZERO), "nothing was given to the client");
        assert!(answer.frame().await.is_some());
        assert!(activity.is_stalled(Duration::ZERO));
        assert!(!activity.is_stalled(Duration::from_secs(3600)));
        drop(answer);
        assert!(!activity.is_stalled(Duration::ZERO));
        assert_eq!(activity.current().0, Phase::Answer, "another answer is incomplete");
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
