//! Three hosts with a network between them: each is cut off from the others in turn, and then from one of them.

use std::time::Duration;

use crate::{
    cluster::{Fault, Trial, is_long},
    services::Services,
};

/// How long a host is cut off.
const CUT_FOR: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_survives_the_loss_of_networks_between_hosts() -> anyhow::Result<()> {
    let environment = [("JOBMESH_HANDLERS", "process_batch=noop")];
    let Some(services) = Services::start_on_hosts(&environment).await? else {
        println!("not tested: only root can make network namespaces");
        return Ok(());
    };
    let mut trial = Trial::start(services).await?;
    for host in 0..3 {
        let cut = Fault::half_open("a host is cut off for 8 s");
        trial
            .fault(cut, async |services| {
                services.cluster.lead_with(host).await?;
                let network = services.network.as_ref().expect("there are hosts");
                network.cut(host)?;
                // The length of the fault.
                tokio::time::sleep(CUT_FOR).await;
                network.heal(host)
            })
            .await?;
    }
    // Each in the long trial.
    let pairs = if is_long() { 3 } else { 1 };
    for host in 0..pairs {
        let cut = Fault::half_open("two of three hosts are cut off from each other for 8 s");
        trial
            .fault(cut, async |services| {
                services.cluster.lead_with(host).await?;
                let network = services.network.as_ref().expect("there are hosts");
                network.cut_between(host, (host + 1) % 3)?;
                // The length of the fault.
                tokio::time::sleep(CUT_FOR).await;
                network.heal_between(host, (host + 1) % 3)
            })
            .await?;
    }
    trial.end().await
}
