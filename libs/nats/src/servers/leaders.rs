//! Which leaders of streams a server reaches.

use std::time::Duration;

use async_nats::Client;
use futures_util::future;
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::timeout;

/// How long the leader of a stream has to answer.
const LEADER_WITHIN: Duration = Duration::from_millis(500);
/// How recently a follower must have answered the leader of a stream.
const ACTIVE_WITHIN: Duration = Duration::from_secs(3);

/// Whether the leader of a stream answers a client.
pub(super) async fn reaches(client: &Client, stream: &str) -> bool {
    let asked = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
    let Ok(Ok(answer)) = timeout(LEADER_WITHIN, asked).await else { return false };
    serde_json::from_slice(&answer.payload).is_ok_and(|info: Info| info.is_led())
}

/// What is asked of the answer about a stream.
#[derive(Deserialize)]
struct Info {
    error: Option<IgnoredAny>,
    cluster: Option<Placed>,
}

#[derive(Deserialize)]
struct Placed {
    leader: Option<String>,
    #[serde(default)]
    replicas: Vec<Follower>,
}

#[derive(Deserialize)]
struct Follower {
    #[serde(default)]
    offline: bool,
    /// How long ago it answered the leader, in ns.
    #[serde(default)]
    active: u64,
}

impl Info {
    /// Whether a leader answers that has a majority. Without a leader, other servers answer; and one that is cut off from the
    /// others takes itself for the leader for a while.
    fn is_led(&self) -> bool {
        if self.error.is_some() {
            return false;
        }
        let Some(placed) = &self.cluster else { return true };
        let is_active =
            |it: &&Follower| !it.offline && u128::from(it.active) < ACTIVE_WITHIN.as_nanos();
        let active = 1 + placed.replicas.iter().filter(is_active).count();
        placed.leader.is_some() && active * 2 > placed.replicas.len() + 1
    }
}

/// Which streams a server reaches the leaders of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached(Vec<bool>);

impl Reached {
    /// Reaches none of a number of streams.
    pub(super) fn nothing(streams: usize) -> Self {
        Self(vec![false; streams])
    }

    pub(super) async fn by(client: &Client, streams: &[String]) -> Self {
        let answers = streams.iter().map(|stream| reaches(client, stream));
        Self(future::join_all(answers).await)
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().filter(|reached| **reached).count()
    }

    pub(super) fn is_all(&self) -> bool {
        self.count() == self.0.len()
    }

    /// Whether it has all that another has, and more.
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        let has_all = self.0.iter().zip(&other.0).all(|(own, other)| *own || !*other);
        has_all && self.count() > other.count()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_led(info: serde_json::Value) -> bool {
        serde_json::from_value::<Info>(info).expect("it is the answer of a server").is_led()
    }

    #[test]
    fn a_leader_has_a_majority() {
        let second = 1_000_000_000_u64;
        let led = |leader: Option<&str>, followers: [u64; 2]| {
            let followers = followers.map(|active| json!({ "name": "n", "active": active }));
            is_led(json!({ "cluster": { "leader": leader, "replicas": followers } }))
        };
        assert!(led(Some("a"), [second, 60 * second]));
        assert!(!led(Some("a"), [60 * second, 60 * second]));
        assert!(!led(None, [0, 0]));
        assert!(is_led(json!({ "cluster": { "leader": "a" } })) && is_led(json!({})));
        assert!(!is_led(json!({ "error": { "code": 503 } })));
    }

    #[test]
    fn a_better_server_reaches_all_that_another_reaches() {
        let reached = |it: [bool; 3]| Reached(it.to_vec());
        let own = reached([true, false, false]);
        assert!(reached([true, true, false]).is_better_than(&own));
        assert!(!reached([false, true, true]).is_better_than(&own));
        assert!(!own.is_better_than(&own));
    }
}
