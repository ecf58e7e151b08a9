//! `jobmesh dev` itself: quick to start again, and it leaves nothing behind.

use std::time::{Duration, Instant};

use crate::mesh::{Mesh, is_alive, send, until};

#[tokio::test(flavor = "multi_thread")]
async fn no_child_outlives_dev_and_a_second_start_is_quick() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    let job = mesh.enqueue("p", 1).await?.remove(0);
    let children = mesh.children();
    assert_eq!(children.len(), 6, "nats-server, olap, state, metrics, processor, edge");
    send(mesh.id(), libc::SIGINT)?;
    let dir = mesh.wait()?;
    assert!(children.iter().all(|id| !is_alive(*id)), "a child outlives an orderly stop");
    let begun = Instant::now();
    let mesh = Mesh::start_in(dir, &[])?;
    assert!(begun.elapsed() < Duration::from_secs(3), "took {:?}", begun.elapsed());
    until("known and completed", async || {
        let job = mesh.job(&job).await?;
        Ok(if job["status"] == "completed" { Ok(()) } else { Err(job.to_string()) })
    })
    .await?;
    let children = mesh.children();
    assert_eq!(children.len(), 6);
    send(mesh.id(), libc::SIGKILL)?;
    until("gone with it", async || {
        let left: Vec<_> = children.iter().filter(|id| is_alive(**id)).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?} live")) })
    })
    .await
}

/// Other users of the machine cannot use the broker.
#[tokio::test(flavor = "multi_thread")]
async fn broker_of_dev_accepts_nobody_without_its_password() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let mesh = Mesh::start_with_arguments(&["--processors", "0"], &[])?;
    let url = mesh.nats_url()?;
    let (login, address) = url.rsplit_once('@').expect("the URL has a login");
    for refused in [format!("nats://{address}"), format!("{login}x@{address}")] {
        assert!(nats::Broker::connect(&refused, "test").await.is_err(), "{refused}");
    }
    let file = std::fs::metadata(mesh.data_dir().join("nats.password"))?;
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    mesh.nats_client().await?;
    Ok(())
}
