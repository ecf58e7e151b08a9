//! Showing that something is under way: a line at the start, one every few seconds, one at the end.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

/// How often a fetch shows that it goes on.
const EVERY: Duration = Duration::from_secs(3);

/// Shows progress on standard error until it is dropped.
pub(crate) struct Progress {
    _end: Sender<()>,
    shown: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Begins to show `what`.
    pub fn begin(what: &str) -> Self {
        eprintln!("fetching {what}");
        let (end, ended) = channel::<()>();
        let begun = Instant::now();
        let what = what.to_owned();
        let shown = thread::spawn(move || {
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                eprintln!("fetching {what}: {} s", begun.elapsed().as_secs());
            }
            eprintln!("fetching {what}: ended after {:.1} s", begun.elapsed().as_secs_f32());
        });
        Self { _end: end, shown: Some(shown) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Hanging up ends the thread; it is waited for so that its last line comes in order.
        let (end, _) = channel();
        drop(std::mem::replace(&mut self._end, end));
        if let Some(shown) = self.shown.take() {
            let _ = shown.join();
        }
    }
}
