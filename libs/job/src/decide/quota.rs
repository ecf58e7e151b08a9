//! The share of a project: how many jobs may be active, how large their data may be, and how many may be enqueued in a
//! minute.

use super::Decision;
use crate::{
    Config, Id, State,
    event::Event,
    reply::{Code, Reply},
    time::Millis,
};

/// Why a project has no room for a request, in a sentence that names the limit.
#[derive(Debug)]
pub(super) enum OverShare {
    /// It has room when jobs have ended.
    Full(String),
    /// It has room in so many seconds.
    FullFor(String, u32),
    /// The request alone exceeds the limit.
    TooLarge(String),
}

impl From<OverShare> for Decision {
    fn from(over: OverShare) -> Self {
        let (code, error, retry_after_s) = match over {
            OverShare::Full(error) => (Code::ProjectFull, error, None),
            OverShare::FullFor(error, seconds) => (Code::ProjectFull, error, Some(seconds)),
            OverShare::TooLarge(error) => (Code::LargerThanLimit, error, None),
        };
        Self::reply(Reply::Refused { code, error, retry_after_s })
    }
}

impl State {
    /// Checks that a project stays within its share with these events, which enqueue and supersede jobs.
    ///
    /// # Errors
    /// If they exceed a limit.
    pub(super) fn check_quota(
        &self,
        config: &Config,
        project: &Id,
        now: Millis,
        events: &[Event],
    ) -> Result<(), OverShare> {
        let limits = self.settings(project).limits(&config.limits);
        if limits.max_active_jobs == 0
            && limits.max_active_bytes == 0
            && limits.enqueues_per_minute == 0
        {
            return Ok(());
        }
        let known = self.persisted.projects.get(project);
        let active = known.map_or(0, |known| known.counts.active());
        let bytes = known.map_or(0, |known| known.live.bytes());
        let (mut new, mut new_bytes, mut ended, mut ended_bytes) = (0, 0, 0, 0);
        for event in events {
            match event {
                Event::Enqueued(job) => {
                    new += 1;
                    new_bytes += job.data.get().len() as u64;
                }
                Event::Ended(job) => {
                    ended += 1;
                    let data = self.job(job.job).map_or(0, |job| job.data.get().len());
                    ended_bytes += data as u64;
                }
                _ => {}
            }
        }
        // Waiting makes no room for these.
        let jobs = "jobs, send fewer at once";
        for (name, limit, amount, what) in [
            ("maxActiveJobs", u64::from(limits.max_active_jobs), new, jobs),
            (
                "maxActiveBytes",
                limits.max_active_bytes,
                new_bytes,
                "bytes of data, send less at once",
            ),
            ("enqueuesPerMinute", u64::from(limits.enqueues_per_minute), new, jobs),
        ] {
            if limit > 0 && amount > limit {
                return Err(OverShare::TooLarge(format!(
                    "the limit {name} of project {project:?} is {limit}, and the request alone has {amount} {what}"
                )));
            }
        }
        let exceeds = |active: u64, ended: u64, new: u64, limit: u64| {
            // A request that adds nothing is never refused, or a lowered limit would refuse it.
            limit > 0 && new > 0 && (active + new).saturating_sub(ended) > limit
        };
        let limit = u64::from(limits.max_active_jobs);
        if exceeds(active, ended, new, limit) {
            return Err(OverShare::Full(format!(
                "project {project:?} has {active} active jobs, and {new} more exceed its limit maxActiveJobs of {limit}; retry later"
            )));
        }
        let limit = limits.max_active_bytes;
        if exceeds(bytes, ended_bytes, new_bytes, limit) {
            return Err(OverShare::Full(format!(
                "the active jobs of project {project:?} have {bytes} bytes of data, and {new_bytes} more exceed its limit \
                 maxActiveBytes of {limit}; retry later"
            )));
        }
        let limit = u64::from(limits.enqueues_per_minute);
        let enqueued = known.map_or(0, |known| known.enqueues.sum(now));
        if exceeds(enqueued, 0, new, limit) {
            // There is room once the others are fewer than the rest of the limit.
            let room_at = known.and_then(|known| known.enqueues.below_at(limit - new + 1, now));
            let wait_s = room_at.map_or(0, |at| (at - now).max(0) / 1_000 + 1);
            let error = format!(
                "{enqueued} jobs of project {project:?} were enqueued in the last minute, and {new} more exceed its limit \
                 enqueuesPerMinute of {limit}; retry in {wait_s} s"
            );
            return Err(OverShare::FullFor(error, u32::try_from(wait_s).unwrap_or(u32::MAX)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Config, JobId, Json, Limits, Lookups, Position, State,
        command::{Command, Enqueue, NewJob},
        reply::{Code, Reply},
    };

    /// Decides an enqueue and applies it.
    fn enqueue(state: &mut State, limits: Limits, jobs: &[(u128, &str)]) -> Reply {
        let config = Config { limits, ..Config::default() };
        let jobs = jobs.iter().map(|(id, batch)| NewJob {
            data: Json::of(&serde_json::json!({ "text": "0123456789" })).expect("it is JSON"),
            ..NewJob::new(JobId::from_u128(*id), (*batch).into())
        });
        let command = Command::Enqueue(Enqueue {
            supersede: true,
            ..Enqueue::new("p".into(), jobs.collect())
        });
        let decision = state.decide(&config, &Lookups::default(), 1, &command);
        let decision = decision.expect("nothing must be read");
        let sequence = state.position().sequence + 1;
        for (index, event) in (0..).zip(&decision.events) {
            state.apply(1, Position::new(sequence, index), event);
        }
        decision.reply
    }

    fn is_refused(reply: &Reply, limit: &str) -> bool {
        matches!(reply, Reply::Refused { code: Code::ProjectFull, error, .. } if error.contains(limit))
    }

    /// Whether the request is refused because it can never be accepted.
    fn is_too_large(reply: &Reply, text: &str) -> bool {
        let Reply::Refused { code, error, retry_after_s } = reply else { return false };
        (code, retry_after_s) == (&Code::LargerThanLimit, &None) && error.contains(text)
    }

    #[test]
    fn project_has_no_more_active_jobs_than_its_share() {
        let limits = Limits { max_active_jobs: 2, ..Limits::default() };
        let mut state = State::new(1_000);
        assert_eq!(
            enqueue(&mut state, limits, &[(1, "a"), (2, "b")]),
            Reply::Enqueued { canceled: 0 }
        );
        assert!(is_refused(&enqueue(&mut state, limits, &[(3, "c")]), "maxActiveJobs"));
        assert_eq!(state.counts(None).total(), 2, "nothing of a refused request is enqueued");
        let three = [(3, "c"), (5, "d"), (6, "e")];
        assert!(is_too_large(&enqueue(&mut state, limits, &three), "maxActiveJobs"));
        // A job takes the place of the one that it supersedes.
        assert_eq!(enqueue(&mut state, limits, &[(4, "a")]), Reply::Enqueued { canceled: 1 });
        assert!(is_refused(&enqueue(&mut state, limits, &[(5, "a"), (6, "c")]), "maxActiveJobs"));
        assert_eq!(
            enqueue(&mut state, Limits::default(), &[(7, "c")]),
            Reply::Enqueued { canceled: 0 }
        );
    }

    #[test]
    fn no_more_jobs_are_enqueued_in_a_minute_than_the_limit() {
        let limits = Limits { enqueues_per_minute: 3, max_active_jobs: 5, ..Limits::default() };
        let config = Config { limits, ..Config::default() };
        let mut state = State::new(1_000);
        let mut enqueue = |now, ids: std::ops::Range<u128>| {
            let jobs = ids.map(|id| NewJob::new(JobId::from_u128(id), format!("{id}").into()));
            let command = Command::Enqueue(Enqueue::new("p".into(), jobs.collect()));
            let decision = state.decide(&config, &Lookups::default(), now, &command);
            let decision = decision.expect("nothing must be read");
            let sequence = state.position().sequence + 1;
            for (index, event) in (0..).zip(&decision.events) {
                state.apply(now, Position::new(sequence, index), event);
            }
            // Another state service knows the same.
            let mut written = Vec::new();
            state.snapshot().write(&mut written).expect("it is written to memory");
            state = State::new(1_000).restore(&*written).expect("it is a snapshot");
            decision.reply
        };
        assert_eq!(enqueue(1_000, 0..2), Reply::Enqueued { canceled: 0 });
        let refused = enqueue(31_000, 2..4);
        assert!(is_refused(&refused, "retry in 31 s"), "{refused:?}");
        assert_eq!(enqueue(31_000, 2..3), Reply::Enqueued { canceled: 0 });
        assert!(is_refused(&enqueue(60_900, 4..5), "enqueuesPerMinute of 3"));
        assert_eq!(enqueue(62_000, 4..6), Reply::Enqueued { canceled: 0 });
        // Five jobs are active, so one more gets another error.
        assert!(is_refused(&enqueue(300_000, 6..7), "maxActiveJobs"));
        let refused = enqueue(300_000, 6..10);
        assert!(is_too_large(&refused, "send fewer at once"), "{refused:?}");
    }

    #[test]
    fn data_of_active_jobs_has_no_more_bytes_than_its_share() {
        // Each has 21 bytes of data.
        let limits = Limits { max_active_bytes: 50, ..Limits::default() };
        let mut state = State::new(1_000);
        assert_eq!(
            enqueue(&mut state, limits, &[(1, "a"), (2, "b")]),
            Reply::Enqueued { canceled: 0 }
        );
        assert!(is_refused(&enqueue(&mut state, limits, &[(3, "c")]), "maxActiveBytes"));
        let three = [(3, "c"), (5, "d"), (6, "e")];
        assert!(is_too_large(&enqueue(&mut state, limits, &three), "maxActiveBytes"));
        assert_eq!(enqueue(&mut state, limits, &[(4, "a")]), Reply::Enqueued { canceled: 1 });
        let snapshot = {
            let mut written = Vec::new();
            state.snapshot().write(&mut written).expect("it is written to memory");
            written
        };
        let mut state = State::new(1_000).restore(&*snapshot).expect("it is a snapshot");
        assert!(is_refused(&enqueue(&mut state, limits, &[(5, "c")]), "42 bytes"));
    }
}
