//! A processor at another site: it connects to a leaf node, which connects to the server of the mesh (deploy/nats/leaf.conf).

use std::{
    fs,
    fs::File,
    process::{Child, Command},
};

use tempfile::TempDir;
use testkit::Nats;

use crate::{
    api::Api,
    login_broker::{ADMIN, DEPLOY, PASSWORD, connect, identities},
    mesh::{free_address, until},
    services::program,
};

/// A service that logs to a file. Dropping it kills it.
struct Service(Child);

impl Service {
    fn start(
        name: &str,
        nats: &Nats,
        dir: &TempDir,
        more: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let log = File::create(dir.path().join(format!("{name}.log")))?;
        let mut program = Command::new(program());
        program.args(["serve", name]).env("JOBMESH_NATS_URL", nats.url());
        program.env("JOBMESH_NATS_USER", name).env("JOBMESH_NATS_PASSWORD", PASSWORD);
        program.env("JOBMESH_METRICS_LISTEN", "127.0.0.1:0").envs(more.iter().copied());
        Ok(Self(program.stdout(log.try_clone()?).stderr(log).spawn()?))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_works_over_a_leaf_node_and_after_its_server_was_away() -> anyhow::Result<()> {
    let read = |name: &str| fs::read_to_string(format!("{DEPLOY}/{name}"));
    let (logins, listen) = (identities()?, free_address()?);
    let leafnodes = read("leafnodes.conf")?
        .replace("$JOBMESH_NATS_LEAF_LISTEN", &format!("{:?}", listen.to_string()))
        .replace("$JOBMESH_NATS_LEAF_PASSWORD", &format!("{PASSWORD:?}"));
    let mut hub = Nats::start_with(&format!("{logins}\n{leafnodes}"))?;
    let hubs = format!("[\"nats-leaf://leaf:{PASSWORD}@{listen}\"]");
    let leaf = read("leaf.conf")?;
    let leaf =
        leaf.replace("include identities.conf", &logins).replace("$JOBMESH_NATS_HUBS", &hubs);
    let leaf = Nats::start_from(&leaf)?;
    let (dir, address) = (TempDir::new()?, free_address()?);
    let log = |name: &str| fs::read_to_string(dir.path().join(format!("{name}.log")));
    let _state = Service::start("state", &hub, &dir, &[])?;
    let _edge = Service::start("edge", &hub, &dir, &[("JOBMESH_LISTEN", &address.to_string())])?;
    let handlers = [("JOBMESH_HANDLERS", "process_batch=noop")];
    let _processor = Service::start("processor", &leaf, &dir, &handlers)?;
    let edge = Api::new(address)?;
    let all_run = async |first: usize| {
        for n in first..first + 20 {
            let body = format!(r#"{{"projectId":"p","batchId":"{n}","data":{{}}}}"#);
            until("accepted", async || {
                let (status, answer) = edge.post_raw("/api/queue/enqueue", body.clone()).await?;
                Ok(if status == 200 { Ok(()) } else { Err(answer.to_string()) })
            })
            .await?;
        }
        until("all have run", async || {
            let counts = edge.counts("p").await?;
            let active = [&counts["queued"], &counts["processing"], &counts["failed"]];
            let is_so = active.into_iter().all(|count| *count == 0)
                && counts["completed"].as_u64().is_some_and(|count| count >= first as u64 + 20);
            Ok(if is_so { Ok(()) } else { Err(format!("{counts}\n{}", log("processor")?)) })
        })
        .await
    };
    until("an edge that is ready for work", async || {
        let (_, ready) = edge.get("/readyz").await?;
        let is_so = ready["state"] == true && ready["processor"] == true;
        Ok(if is_so { Ok(()) } else { Err(format!("{ready}\n{}", log("processor")?)) })
    })
    .await?;
    all_run(0).await?;
    hub.kill_and_restart()?;
    all_run(20).await?;
    // The logins of the leaf node may do no more than those of the server.
    let processor = connect(&leaf, "processor").await?;
    assert!(processor.js.delete_stream("AUDIT").await.is_err());
    let admin = connect(&leaf, ADMIN).await?;
    assert!(admin.js.get_stream("AUDIT").await.is_ok());
    admin.js.delete_stream("AUDIT").await?;
    Ok(())
}
