//! Tokens of runs: a processor that was given a run can report on it, and no other.
//!
//! The token of a run is a keyed hash of its job and number. It is in the message with the work, and each report of the
//! run repeats it. The key is random and in the bucket of leases, which no processor can read.

use async_nats::jetstream::kv;
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
#[derive(Serialize, Deserialize)]
struct Stored {
    key: String,
    /// Since when runs have tokens, in ms since 1970.
    since: Millis,
}

/// What makes and checks tokens.
#[derive(Clone, Debug)]
pub struct RunTokens {
    mac: Hmac<Sha256>,
    since: Millis,
}

impl RunTokens {
    /// Tokens with this key, for runs that became queued at `since` or later.
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

    /// Checks that the sender of a report was given its run. `missing_allowed`: reports without a token are accepted.
    /// In any case they are for runs from before there were tokens.
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
        let is_older = || {
            let job = state.job(job).filter(|job| job.run == run);
            job.is_some_and(|job| job.queued_at < self.since)
        };
        let problem = match token {
            Some(token) if differs(token, self.token(job, run)) => "another token than the run has",
            None if !missing_allowed && !is_older() => "no token",
            _ => return Ok(()),
        };
        let worker = worker.map_or("a processor", |worker| worker);
        Err(format!(
            "{worker} reported on run {run} of job {job} with {problem}: a processor must repeat the \
             field `token` of the message that gave it the run"
        ))
    }
}

/// Whether two tokens differ. The time it takes does not depend on where.
fn differs(one: Digest, other: Digest) -> bool {
    one.0.iter().zip(other.0).fold(0, |sum, (a, b)| sum | (a ^ b)) != 0
}

impl Broker {
    /// The tokens of this mesh, whose key is made at `now` if there is none.
    ///
    /// # Errors
    /// If the key cannot be read or made.
    pub async fn run_tokens(&self, now: Millis) -> Result<RunTokens, Error> {
        let failed = |step| move |why: String| Error { step, why };
        let store = self.js.get_key_value(names::LEASES).await;
        let store = store.map_err(|error| failed("read")(error.to_string()))?;
        if let Some(tokens) = read(&store).await? {
            return Ok(tokens);
        }
        let key = Secret::random(KEY_CHARS).map_err(|error| failed("made")(error.to_string()))?;
        let stored = Stored { key: key.reveal().to_owned(), since: now };
        let value = serde_json::to_vec(&stored).expect("a text and a number are JSON");
        let made = store.create(names::RUN_TOKENS, value.into()).await;
        match made {
            Ok(_) => Ok(RunTokens::new(&stored.key, stored.since)),
            // Another state service made it at the same time, or the answer was lost.
            Err(error) => match read(&store).await? {
                Some(tokens) => Ok(tokens),
                None => Err(failed("made")(error.to_string())),
            },
        }
    }
}

async fn read(store: &kv::Store) -> Result<Option<RunTokens>, Error> {
    let failed = |why: String| Error { step: "read", why };
    let value = store.get(names::RUN_TOKENS).await.map_err(|error| failed(error.to_string()))?;
    let Some(value) = value else { return Ok(None) };
    let stored: Stored =
        serde_json::from_slice(&value).map_err(|error| failed(error.to_string()))?;
    Ok(Some(RunTokens::new(&stored.key, stored.since)))
}

#[cfg(test)]
mod tests {
    use testkit::Nats;

    use super::*;
    use crate::topology::{self, Sizes};

    #[tokio::test]
    async fn all_state_services_of_a_mesh_have_the_same_tokens_and_those_of_another_mesh_differ()
    -> anyhow::Result<()> {
        let (one, other) = (Nats::start()?, Nats::start()?);
        let job = JobId::from_u128(7);
        let mut tokens = Vec::new();
        for nats in [&one, &one, &other] {
            let broker = Broker::connect(&nats.url(), "test").await?;
            topology::ensure(&broker, Sizes::default()).await?;
            tokens.push(broker.run_tokens(5).await?.token(job, 1));
        }
        assert_eq!(tokens[0], tokens[1]);
        assert_ne!(tokens[0], tokens[2]);
        Ok(())
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
