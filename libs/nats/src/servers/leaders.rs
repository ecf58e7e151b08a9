//! Which leaders of streams a server reaches.

use std::time::Duration;

use async_nats::{
    Client,
    jetstream::{
        self,
        stream::{ClusterInfo, PeerInfo},
    },
};
use futures_util::future;
use tokio::time::timeout;

/// How long the leader of a stream has to answer.
const LEADER_WITHIN: Duration = Duration::from_millis(500);
/// How recently a follower must have answered the leader of a stream.
const ACTIVE_WITHIN: Duration = Duration::from_secs(3);

/// Whether the leader of a stream answers a client.
pub(super) async fn reaches(client: &Client, stream: &str) -> bool {
    let js = jetstream::new(client.clone());
    let stream = timeout(LEADER_WITHIN, js.get_stream(stream)).await;
    stream.is_ok_and(|it| it.is_ok_and(|it| is_led(it.cached_info().cluster.as_ref())))
}

/// Whether a stream has a leader with a majority. Without a leader, other servers answer; and a leader that is cut off takes itself
/// for one for 10 to 20 s.
fn is_led(cluster: Option<&ClusterInfo>) -> bool {
    let Some(cluster) = cluster else { return true };
    let is_active = |it: &&PeerInfo| !it.offline && it.active < ACTIVE_WITHIN;
    let active = 1 + cluster.replicas.iter().filter(is_active).count();
    cluster.leader.is_some() && active * 2 > cluster.replicas.len() + 1
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

    #[test]
    fn a_leader_has_a_majority() {
        let second = 1_000_000_000_u64;
        let led = |leader: Option<&str>, followers: &[u64]| {
            let followers = followers
                .iter()
                .map(|active| json!({ "name": "n", "current": true, "active": active }))
                .collect::<Vec<_>>();
            let cluster =
                serde_json::from_value(json!({ "leader": leader, "replicas": followers }));
            is_led(Some(&cluster.expect("it is the answer of a server")))
        };
        assert!(led(Some("a"), &[second, 60 * second]) && led(Some("a"), &[]));
        assert!(!led(Some("a"), &[60 * second, 60 * second]));
        assert!(!led(None, &[0, 0]));
        assert!(is_led(None), "a server without a cluster leads its streams");
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
