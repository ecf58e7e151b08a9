//! `jobmesh dev` itself: quick to start again, and it leaves nothing behind.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    api::sql_in,
    mesh::{Mesh, PATIENCE, free_address, is_alive, send, until},
    services::program,
};

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

/// The engine ends without a crash, also after it was used.
#[tokio::test(flavor = "multi_thread")]
async fn olap_ends_in_order() -> anyhow::Result<()> {
    for _ in 0..3 {
        let (dir, listen) = (TempDir::new()?, free_address()?);
        let [reader, writer] = ["reader", "writer"].map(|name| dir.path().join(name));
        std::fs::write(&reader, "r")?;
        std::fs::write(&writer, "w")?;
        let mut olap = Command::new(program());
        olap.args(["serve", "olap", "--listen", &listen.to_string()]);
        olap.arg("--dir").arg(dir.path().join("olap")).arg("--libchdb").arg(fetch::libchdb()?);
        olap.arg("--password-file").arg(reader).arg("--writer-password-file").arg(writer);
        let mut olap = olap.stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        let url = format!("http://writer:w@{listen}");
        let sql = async |query| sql_in(&url, "default", query).await;
        until("olap answers", async || {
            Ok(sql("SELECT 1").await.map(drop).map_err(|error| error.to_string()))
        })
        .await?;
        sql("CREATE TABLE t (n UInt32) ENGINE = MergeTree ORDER BY n").await?;
        sql("INSERT INTO t SELECT number FROM numbers(100000)").await?;
        assert_eq!(sql("SELECT count() FROM t").await?, "100000");
        send(olap.id().context("it runs")?, libc::SIGTERM)?;
        let status = tokio::time::timeout(Duration::from_secs(30), olap.wait()).await??;
        assert!(status.success(), "{status}");
    }
    Ok(())
}

/// A service that refuses its settings would refuse them again.
#[tokio::test(flavor = "multi_thread")]
async fn dev_ends_at_once_if_a_setting_of_a_service_is_invalid() -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let mut dev = Command::new(program());
    dev.args(["dev", "--listen", &free_address()?.to_string(), "--data-dir"]).arg(dir.path());
    dev.env("JOBMESH_RETENTION_S", "a week").kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, dev.output()).await??;
    let text = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && text.contains("a setting of state"), "{text}");
    assert!(text.contains("--retention-s") && !text.contains("starting it again"), "{text}");
    Ok(())
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
