//! Whether the broker that delivers runs still knows which ones it has delivered.

use std::sync::atomic::Ordering;

use nats::{Broker, consumer::Pullers};

/// The server process and the consumers that know of deliveries. If one of them is replaced, some
/// deliveries may be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokerIncarnation {
    /// The id of the server that this processor is connected to: a new one for each of its processes, but the old one if the
    /// processor itself chose another server, which takes nothing from the consumers of a cluster.
    server: String,
    /// How many consumers were replaced so far.
    replacements: u64,
}

impl BrokerIncarnation {
    /// The current one. A new connection to the same server makes no difference: deliveries that were lost with
    /// the old one are redelivered.
    pub fn current(broker: &Broker, pullers: &Pullers) -> Self {
        let server = broker.incarnation();
        Self { server, replacements: pullers.replacements() }
    }
}

/// How many connections were made so far.
pub(crate) fn connects(broker: &Broker) -> u64 {
    broker.client.statistics().connects.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use job::JobType;
    use nats::topology::{self, Sizes};
    use testkit::{Nats, Proxy};

    use super::*;

    /// How long the client may take to know the new server.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread")]
    async fn restarted_server_is_another_one_and_a_new_connection_to_the_same_is_not()
    -> anyhow::Result<()> {
        let mut nats = Nats::start()?;
        let proxy = Proxy::start(nats.address()).await?;
        let broker = Broker::connect(&proxy.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let before = BrokerIncarnation::current(&broker, &pullers);
        proxy.cut();
        let begun = Instant::now();
        while connects(&broker) < 2 {
            assert!(begun.elapsed() < PATIENCE, "no new connection");
            tokio::task::yield_now().await;
        }
        broker.client.flush().await?;
        assert_eq!(BrokerIncarnation::current(&broker, &pullers), before);
        nats.kill_and_restart()?;
        while BrokerIncarnation::current(&broker, &pullers) == before {
            assert!(begun.elapsed() < PATIENCE, "the server is still the old one");
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
