//! How many servers of NATS can be lost before a stream stops.

use async_nats::jetstream::stream::ClusterInfo;
use futures_util::future;

use crate::{Broker, names};

impl Broker {
    /// How many servers may fail now so that every stream that jobs need still stores messages: 0 if each is on one
    /// server only. `None` if a stream could not be read.
    pub async fn spare_servers(&self) -> Option<usize> {
        let spare = names::job_streams().into_iter().map(async |stream| {
            let stream = self.js.get_stream(stream).await.ok()?;
            Some(spare_of(stream.cached_info().cluster.as_ref()))
        });
        let spare: Option<Vec<usize>> = future::join_all(spare).await.into_iter().collect();
        spare?.into_iter().min()
    }
}

/// How many of the servers of a stream may fail so that a majority is left.
fn spare_of(cluster: Option<&ClusterInfo>) -> usize {
    let Some(cluster) = cluster else { return 0 };
    let followers = cluster.replicas.iter().filter(|peer| peer.current && !peer.offline).count();
    let current = followers + usize::from(cluster.leader.is_some());
    let servers = cluster.replicas.len() + 1;
    let majority = servers / 2 + 1;
    current.saturating_sub(majority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(followers: &[bool]) -> ClusterInfo {
        let peers = followers.iter().map(|current| {
            serde_json::json!({ "name": "n", "current": current, "offline": !current, "active": 0 })
        });
        let info = serde_json::json!({ "leader": "l", "replicas": peers.collect::<Vec<_>>() });
        serde_json::from_value(info).expect("it is the answer of a server")
    }

    #[test]
    fn a_server_is_spare_if_a_majority_is_left_without_it() {
        for (followers, spare) in [
            (vec![], 0),
            (vec![true], 0),
            (vec![true, true], 1),
            (vec![true, false], 0),
            (vec![true, true, true, true], 2),
            (vec![true, true, true, false], 1),
        ] {
            assert_eq!(spare_of(Some(&cluster(&followers))), spare, "{followers:?}");
        }
        assert_eq!(spare_of(None), 0);
    }
}
