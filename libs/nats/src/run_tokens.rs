//! Tokens of runs: a processor can report only on a run whose work it has received.
//!
//! The token of a run is a keyed hash of its job and number. It is in the message with the work, and each report of the
//! run repeats it. The key is random and in the bucket of leases, which no processor can read.

use async_nats::jetstream::kv::Operation;
use hmac::{Hmac, Mac};
use job::{Digest, JobId, Run, State, command::RunReport, time::Millis};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{Broker, access::Secret, names};

/// The length of the key: 190 random bits.
const KEY_CHARS: usize = 32;

/// The key could not be read or made.
#[derive(Debug, thiserror::Error)]
#[error("the key of run tokens could not be {step}: {why}")]
pub struct Error {
    step: &'static str,
    why: String,
}

/// The value under [`RUN_TOKENS`](names::RUN_TOKENS) in the bucket of leases.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    key: String,
    /// Since when all runs have tokens, in ms since 1970.
    since: Millis,
    /// The term of the last leader that made tokens.
    #[serde(default)]
    term: u64,
}

impl Stored {
    fn tokens(&self) -> RunTokens {
        RunTokens::new(&self.key, self.since)
    }
}

/// What makes and checks tokens.
#[derive(Clone, Debug)]
pub struct RunTokens {
    mac: Hmac<Sha256>,
    since: Millis,
}

impl RunTokens {
    /// Tokens with this key, for runs of jobs that were created at `since` or later.
    pub fn new(key: &str, since: Millis) -> Self {
        let mac = Hmac::new_from_slice(key.as_bytes()).expect("a key may have any length");
        Self { mac, since }
    }

    /// The token of a run.
    pub fn token(&self, job: JobId, run: Run) -> Digest {
        let mut mac = self.mac.clone();
        mac.update(job.as_bytes());
        mac.update(&run.to_be_bytes());
        let hash: [u8; 32] = mac.finalize().into_bytes().into();
        let (token, _) = hash.split_first_chunk().expect("32 bytes have 16");
        Digest(*token)
    }

    /// Checks that a report has the token of its run. `missing_allowed`: reports without a token are accepted. In any
    /// case they are if the job is from before there were tokens.
    ///
    /// # Errors
    /// Why the report is refused.
    pub fn check(
        &self,
        state: &State,
        report: RunReport<'_>,
        missing_allowed: bool,
    ) -> Result<(), String> {
        let RunReport { job, run, worker, token } = report;
        let is_older =
            || state.job(job).is_some_and(|job| run <= job.run && job.created_at < self.since);
        let problem = match token {
            Some(token) if differs(token, self.token(job, run)) => "another token than the run has",
            None if !missing_allowed && !is_older() => "no token",
            _ => return Ok(()),
        };
        let worker = worker.map_or("a processor", |worker| worker);
        Err(format!(
            "{worker} reported on run {run} of job {job} with {problem}: a processor must repeat the \
             field `token` of the message with the work"
        ))
    }
}

/// Whether two tokens differ. The time it takes does not depend on where.
fn differs(one: Digest, other: Digest) -> bool {
    one.0.iter().zip(other.0).fold(0, |sum, (a, b)| sum | (a ^ b)) != 0
}

impl Broker {
    /// The tokens of this mesh, as the leader of a term makes them. The key is made if there is none, or none that can be
    /// read: reports of runs in flight, which have tokens of another key, are refused then. If the leader before made no
    /// tokens, jobs from before `now` are exempt, also if it only failed before it could.
    ///
    /// # Errors
    /// If the key cannot be read or stored, or another leader has stored it at the same time.
    pub async fn take_run_tokens(&self, term: u64, now: Millis) -> Result<RunTokens, Error> {
        let store = self.js.get_key_value(names::LEASES).await;
        let store = store.map_err(|error| failed("read", error))?;
        let entry = store.entry(names::RUN_TOKENS).await.map_err(|error| failed("read", error))?;
        let (revision, known) = match &entry {
            None => (0, None),
            Some(entry) if entry.operation != Operation::Put => (entry.revision, None),
            Some(entry) => (entry.revision, read(&entry.value)),
        };
        let stored = match known {
            Some(known) if known.term > term => {
                return Err(failed("stored", format!("term {} has begun", known.term)));
            }
            Some(known) if known.term == term || known.term + 1 == term => Stored { term, ..known },
            Some(known) => Stored { term, since: now, ..known },
            None => {
                let key = Secret::random(KEY_CHARS).map_err(|error| failed("made", error))?;
                Stored { key: key.reveal().to_owned(), since: now, term }
            }
        };
        let value = serde_json::to_vec(&stored).expect("a text and numbers are JSON");
        let updated = store.update(names::RUN_TOKENS, value.into(), revision).await;
        updated.map_err(|error| failed("stored", error))?;
        Ok(stored.tokens())
    }

    /// The tokens that the last leader made; `None` if there was none.
    ///
    /// # Errors
    /// If the key cannot be read.
    pub async fn run_tokens(&self) -> Result<Option<RunTokens>, Error> {
        let store = self.js.get_key_value(names::LEASES).await;
        let store = store.map_err(|error| failed("read", error))?;
        let value = store.get(names::RUN_TOKENS).await.map_err(|error| failed("read", error))?;
        Ok(value.and_then(|value| read(&value)).map(|stored| stored.tokens()))
    }
}

/// A stored key; `None` if it is not readable: then runs in flight lose their tokens, and nothing else.
fn read(value: &[u8]) -> Option<Stored> {
    let stored = serde_json::from_slice(value);
    stored
        .inspect_err(|error| tracing::error!(%error, "the key of run tokens is not readable"))
        .ok()
}

fn failed(step: &'static str, error: impl std::fmt::Display) -> Error {
    Error { step, why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use job::{
        Config, Lookups, Position,
        command::{Command, Enqueue, NewJob},
    };
    use testkit::Nats;

    use super::*;
    use crate::topology::{self, Sizes};

    #[tokio::test]
    async fn leaders_of_a_mesh_make_the_same_tokens_and_those_of_another_mesh_differ()
    -> anyhow::Result<()> {
        let (one, other) = (Nats::start()?, Nats::start()?);
        let job = JobId::from_u128(7);
        let mut tokens = Vec::new();
        for (nats, term) in [(&one, 1), (&one, 2), (&other, 1)] {
            let broker = Broker::connect(&nats.url(), "test").await?;
            topology::ensure(&broker, Sizes::default()).await?;
            let taken = broker.take_run_tokens(term, 5).await?;
            assert_eq!(
                broker.run_tokens().await?.map(|it| it.token(job, 1)),
                Some(taken.token(job, 1))
            );
            tokens.push(taken.token(job, 1));
        }
        assert_eq!(tokens[0], tokens[1]);
        assert_ne!(tokens[0], tokens[2]);
        Ok(())
    }

    #[tokio::test]
    async fn jobs_are_exempt_that_a_leader_without_tokens_may_have_dispatched() -> anyhow::Result<()>
    {
        let nats = Nats::start()?;
        let broker = Broker::connect(&nats.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        assert_eq!(broker.take_run_tokens(3, 100).await?.since, 100);
        assert_eq!(broker.take_run_tokens(4, 200).await?.since, 100);
        // Term 5 was that of an earlier version.
        assert_eq!(broker.take_run_tokens(6, 300).await?.since, 300);
        let leases = broker.js.get_key_value(names::LEASES).await?;
        leases.put(names::RUN_TOKENS, "nonsense".into()).await?;
        let before = broker.take_run_tokens(7, 400).await?;
        assert_eq!(before.since, 400);
        let job = JobId::from_u128(7);
        assert!(broker.take_run_tokens(6, 450).await.is_err(), "a later leader made tokens");
        assert_eq!(broker.take_run_tokens(8, 500).await?.token(job, 1), before.token(job, 1));
        Ok(())
    }

    /// A state with job 7, which was created at `at`.
    fn state(at: Millis) -> State {
        let mut state = State::new(1_000);
        let enqueue = Enqueue::new("p".into(), vec![NewJob::new(JobId::from_u128(7), "b".into())]);
        let decision =
            state.decide(&Config::default(), &Lookups::default(), at, &Command::Enqueue(enqueue));
        for (index, event) in (0..).zip(decision.expect("nothing must be read").events) {
            state.apply(at, Position::new(1, index), &event);
        }
        state
    }

    #[test]
    fn report_without_a_token_is_accepted_for_jobs_from_before_there_were_tokens() {
        let tokens = RunTokens::new("key", 5);
        let report = |run| RunReport { job: JobId::from_u128(7), run, worker: None, token: None };
        assert_eq!(tokens.check(&state(4), report(1), false), Ok(()));
        assert!(tokens.check(&state(4), report(2), false).is_err(), "there is no such run");
        assert!(tokens.check(&state(5), report(1), false).is_err());
    }

    #[test]
    fn report_is_accepted_only_with_the_token_of_its_run() {
        let (tokens, state) = (RunTokens::new("key", 5), State::new(1_000));
        let job = JobId::from_u128(7);
        let report = |token| RunReport { job, run: 2, worker: None, token };
        let check = |token, allowed| tokens.check(&state, report(token), allowed);
        assert_eq!(check(Some(tokens.token(job, 2)), false), Ok(()));
        assert!(check(Some(tokens.token(job, 1)), true).is_err());
        assert!(check(Some(tokens.token(JobId::from_u128(8), 2)), true).is_err());
        assert!(check(None, false).is_err());
        assert_eq!(check(None, true), Ok(()));
    }
}
