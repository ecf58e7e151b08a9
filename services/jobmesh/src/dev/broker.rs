//! Watching over the broker of `dev`: after a full disk it stores nothing more, though there is room
//! again, until it is restarted.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use tokio::sync::Notify;

/// How often the broker is asked how it is.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long it may take to answer; it may take long to start.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a broker that was restarted is left alone.
const RESTART_PAUSE: Duration = Duration::from_secs(10);
/// What must fit on the disk before the broker is started again, in bytes.
const SPACE_BYTES: usize = 16 << 20;

/// The broker's health endpoint, and the folder of its store.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// Its monitoring interface.
    pub monitor: SocketAddr,
    /// A directory on its disk.
    pub dir: PathBuf,
}

/// What the broker says of its health.
#[derive(Deserialize)]
struct Health {
    #[serde(default)]
    error: String,
}

/// Restarts the broker whenever it cannot store and its disk has space.
pub(super) async fn watch(watched: Watched, restart: Arc<Notify>) -> anyhow::Result<()> {
    let client = outbound::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
    let url = format!("http://{}/healthz", watched.monitor);
    let mut is_reported = false;
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        // While it starts or restarts it does not answer.
        let Ok(answer) = client.get(&url).send().await else { continue };
        let health = answer.json::<Health>().await;
        let Some(error) = health.ok().map(|health| health.error).filter(|e| is_of_disk(e)) else {
            is_reported = false;
            continue;
        };
        let dir = watched.dir.clone();
        let space = tokio::task::spawn_blocking(move || has_space(&dir)).await?;
        match space {
            Ok(()) => {
                eprintln!("nats-server could not write, and can again: restarting it ({error})");
                restart.notify_one();
                tokio::time::sleep(RESTART_PAUSE).await;
            }
            Err(space) if !is_reported => {
                is_reported = true;
                eprintln!(
                    "nats-server cannot write, and no job is accepted: {error}. Free at least {} MB \
                     on the disk of {} ({space}); nats-server is then restarted",
                    SPACE_BYTES >> 20,
                    watched.dir.display()
                );
            }
            Err(_) => {}
        }
    }
}

/// Whether an error is about writing to the disk.
fn is_of_disk(error: &str) -> bool {
    error.contains("write error") || error.contains("no space left")
}

/// Whether so much can be written.
fn has_space(dir: &Path) -> io::Result<()> {
    let path = dir.join("space-check");
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&vec![0; SPACE_BYTES])?;
        file.sync_all()
    };
    let written = write();
    let removed = fs::remove_file(&path);
    written.and(removed)
}
