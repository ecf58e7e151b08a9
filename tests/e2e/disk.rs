//! Data directories of any name, and disks that are full.

use std::{fs, path::Path, process::Command};

use serde_json::json;
use tempfile::TempDir;

use crate::mesh::{Mesh, until};

/// The size of the disk that is filled.
const DISK_MB: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_may_have_any_name() -> anyhow::Result<()> {
    for name in ["café", "cafe\u{301} 数据", "\u{202e}rtl", "a \"b\" 'c' \\d", "$HOME #e {f}; g"]
    {
        let mesh = Mesh::start_named(TempDir::new()?, name)?;
        let job =
            mesh.post("/api/queue/enqueue", json!({ "projectId": "p", "batchId": "b" })).await?;
        let id = job["jobId"].as_str().expect("an id");
        let (_, answer) = mesh.get(&format!("/api/queue/status/{id}?wait=60s")).await?;
        assert_eq!(answer["job"]["status"], "completed", "{name}: {answer}");
        assert!(
            mesh.data_dir().join("nats/jetstream").is_dir(),
            "{name}: its streams are elsewhere"
        );
    }
    Ok(())
}

/// A disk of its own in memory, as long as this lives.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    /// None if this machine does not let us mount one.
    fn mount(path: &'a Path) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(path)?;
        let size = format!("size={DISK_MB}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status()?;
        Ok(mounted.success().then_some(Self(path)))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_full_disk_dev_goes_on_by_itself() -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let store = dir.path().join("data/nats");
    let Some(_disk) = Disk::mount(&store)? else {
        eprintln!("not tested: this machine does not allow a disk in memory to be mounted");
        return Ok(());
    };
    let mesh = Mesh::start_named(dir, "data")?;
    let enqueue = async |n: usize| {
        let data = "x".repeat(50_000);
        let body = json!({ "projectId": "p", "batchId": format!("b{n}"), "data": { "x": data } });
        mesh.post_raw("/api/queue/enqueue", body.to_string()).await
    };
    let filler = store.join("filler");
    let (mut accepted, mut n) = (0, 0);
    let mut send = async || {
        n += 1;
        let (status, answer) = enqueue(n).await?;
        accepted += usize::from(status == 200);
        anyhow::Ok((status, answer))
    };
    for _ in 0..20 {
        assert_eq!(send().await?.0, 200);
    }
    let chunk = vec![7; 1 << 20];
    let mut file = fs::File::create(&filler)?;
    while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    until("refused, as nothing can be stored", async || {
        let (status, answer) = send().await?;
        Ok(if status == 503 { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await?;
    until("told by /readyz", async || {
        send().await?;
        let (status, ready) = mesh.get("/readyz").await?;
        let is_told = status == 503 && ready["unstoredSubjects"].is_array();
        Ok(if is_told { Ok(()) } else { Err(ready.to_string()) })
    })
    .await?;
    let doctor = Command::new(env!("CARGO_BIN_EXE_tests"))
        .args(["doctor", "--json"])
        .env("JOBMESH_URL", mesh.url(""))
        .output()?;
    let found = String::from_utf8_lossy(&doctor.stdout);
    assert!(!doctor.status.success() && found.contains("free space"), "{found}");
    drop(file);
    fs::remove_file(&filler)?;
    until("accepted again", async || {
        let (status, answer) = send().await?;
        Ok(if status == 200 { Ok(()) } else { Err(format!("{status} {answer}")) })
    })
    .await?;
    until("all completed", async || {
        let counts = mesh.counts("p").await?;
        let completed = counts["completed"].as_u64().unwrap_or_default() as usize;
        Ok(if completed >= accepted { Ok(()) } else { Err(format!("{accepted}: {counts}")) })
    })
    .await
}
