//! Whether the broker that hands out runs still knows which ones it has handed out.

use nats::{Broker, consumer::Pullers};

/// What remembers deliveries: where it is another than before, some may have been forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deliverer {
    /// The id of the server that this processor is connected to: a new one for each of its processes.
    server: String,
    /// How many consumers were replaced so far.
    replacements: u64,
}

impl Deliverer {
    /// As it is now. A connection that was replaced makes no difference: what was lost with it counts as
    /// delivered, and is redelivered.
    pub fn now(broker: &Broker, pullers: &Pullers) -> Self {
        let server = broker.client.server_info().server_id;
        Self { server, replacements: pullers.replacements() }
    }
}

#[cfg(test)]
mod tests {
    use job::JobType;
    use nats::topology::{self, Sizes};
    use testkit::{Nats, Proxy};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn restarted_server_is_another_one_and_a_new_connection_to_the_same_is_not()
    -> anyhow::Result<()> {
        let mut nats = Nats::start()?;
        let proxy = Proxy::start(nats.address()).await?;
        let broker = Broker::connect(&proxy.url(), "test").await?;
        topology::ensure(&broker, Sizes::default()).await?;
        let pullers = Pullers::ensure(&broker, vec![JobType::ProcessBatch]).await?;
        let before = Deliverer::now(&broker, &pullers);
        let mut connects = broker.connects();
        connects.mark_unchanged();
        proxy.cut();
        connects.changed().await?;
        assert_eq!(Deliverer::now(&broker, &pullers), before);
        nats.kill_and_restart()?;
        connects.changed().await?;
        assert_ne!(Deliverer::now(&broker, &pullers), before);
        Ok(())
    }
}
