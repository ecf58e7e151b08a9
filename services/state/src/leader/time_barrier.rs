//! Decisions by time wait until the commands that were stored before are processed.
//!
//! A job can have started in time, and a schedule can have been deleted, by a command that still waits in COMMANDS. After a
//! change of leaders those are many.

use std::time::{Duration, Instant};

use job::time::Millis;

/// How long to wait before the end of COMMANDS is read again.
const READ_EVERY: Duration = Duration::from_millis(100);

/// The end of COMMANDS as it was at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommandsEnd {
    /// When the reading began.
    pub at: Millis,
    /// The last message.
    pub last: u64,
}

/// How long the commands before the end may take before it is checked that the last one is still there: an operator can
/// have deleted it.
const CHECK_AFTER: Duration = Duration::from_secs(2);

/// Compares the end of COMMANDS with what is processed.
#[derive(Debug, Default)]
pub(super) struct TimeBarrier {
    end: Option<CommandsEnd>,
    is_reading: bool,
    read_at: Option<Instant>,
}

impl TimeBarrier {
    /// The time up to which all commands are processed, if that is known; `through` is the last one that is.
    pub fn passed(&self, through: u64) -> Option<Millis> {
        self.end.filter(|end| end.last <= through).map(|end| end.at)
    }

    /// True if the end of COMMANDS must be read for something that is `due`. [`done`](Self::done) receives it.
    pub fn must_read(&mut self, due: Millis) -> bool {
        let has_room = self.read_at.is_none_or(|at| at.elapsed() >= READ_EVERY);
        let must_read = has_room && !self.waits(due);
        if must_read {
            (self.is_reading, self.read_at) = (true, Some(Instant::now()));
        }
        must_read
    }

    /// The end of COMMANDS, if it must be checked. [`done`](Self::done) receives it without the messages at its end that
    /// were deleted.
    pub fn must_check(&mut self, through: u64) -> Option<CommandsEnd> {
        let is_late = self.read_at.is_some_and(|at| at.elapsed() >= CHECK_AFTER);
        let end = self.end.filter(|end| is_late && !self.is_reading && end.last > through)?;
        (self.is_reading, self.read_at) = (true, Some(Instant::now()));
        Some(end)
    }

    /// Receives the end of COMMANDS, if it could be read.
    pub fn done(&mut self, end: Option<CommandsEnd>) {
        self.is_reading = false;
        self.end = end.or(self.end);
    }

    /// When to look again for something that is due; `None` if a reading or a command will tell.
    pub fn next_look(&self, due: Millis, due_at: Instant) -> Option<Instant> {
        let may_read_at = self.read_at.map(|at| at + READ_EVERY);
        (!self.waits(due)).then(|| may_read_at.map_or(due_at, |at| at.max(due_at)))
    }

    /// True while a reading is in progress, or commands before its end are not processed yet.
    fn waits(&self, due: Millis) -> bool {
        self.is_reading || self.end.is_some_and(|end| end.at >= due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_before_the_commands_that_came_first_are_processed() {
        let mut barrier = TimeBarrier::default();
        assert!(barrier.must_read(10));
        assert!(!barrier.must_read(10), "a reading is in progress");
        assert_eq!(barrier.next_look(10, Instant::now()), None);
        barrier.done(Some(CommandsEnd { at: 12, last: 5 }));
        assert_eq!(barrier.passed(4), None);
        assert!(!barrier.must_read(10), "commands 1 to 5 come first");
        assert_eq!(barrier.passed(5), Some(12));
        assert!(barrier.next_look(13, Instant::now()).is_some(), "due after the reading");
    }

    #[test]
    fn an_end_that_is_not_reached_is_checked() {
        let mut barrier = TimeBarrier::default();
        assert!(barrier.must_read(10));
        barrier.done(Some(CommandsEnd { at: 12, last: 5 }));
        assert!(barrier.must_check(4).is_none(), "it was read just now");
        barrier.read_at = Instant::now().checked_sub(CHECK_AFTER);
        assert!(barrier.must_check(5).is_none(), "it is reached");
        let end = barrier.must_check(4).expect("it is late");
        assert!(barrier.must_check(4).is_none(), "it is being checked");
        barrier.done(Some(CommandsEnd { last: 4, ..end }));
        assert_eq!(barrier.passed(4), Some(12));
    }

    #[test]
    fn a_reading_that_failed_is_made_again_after_a_pause() {
        let mut barrier = TimeBarrier::default();
        assert!(barrier.must_read(10));
        barrier.done(None);
        assert!(!barrier.must_read(10));
        let now = Instant::now();
        assert!(barrier.next_look(10, now).is_some_and(|at| at > now));
    }
}
