//! `jobmesh dev`: everything on one machine, each service a child process as in production,
//! restarted when it dies, none outliving this one.

mod broker;
mod child;
mod config;
mod environment;
mod plan;
mod ready;

use std::{
    fs::{self, File},
    io::Write,
    net::TcpListener,
    path::Path,
};

use metrics::{ClickHouseAccess, archive::Archive};
use nats::{Broker, names, topology::Sizes};
use service::NatsLogin;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use crate::backup::Restorable;
use child::Child;
pub use config::Config;
use plan::Storage;

/// Runs until SIGINT or SIGTERM.
pub fn run(config: Config) -> anyhow::Result<()> {
    // Children are bound to the thread that starts them, which must be the last to exit.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(config))
}

async fn supervise(config: Config) -> anyhow::Result<()> {
    let stop = service::shutdown::on_signal()?;
    fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("no folder {}", config.data_dir.display()))?;
    let data_dir = fs::canonicalize(&config.data_dir)?;
    let _lock = lock(&data_dir)?;
    let mark = data_dir.join(RESTORE_MARK);
    if mark.exists() {
        bail!("{}", incomplete(&data_dir));
    }
    // Checked here, so that the error is visible: a child would log it, and another edge on that
    // address would answer instead.
    edge::check_listen(config.listen, config.insecure || config.require_keys)?;
    drop(TcpListener::bind(config.listen).with_context(|| {
        format!("cannot listen on {}; --listen chooses another address", config.listen)
    })?);
    if let Some(url) = &config.nats_url {
        // The services would wait for it, and write the reason to their logs.
        let access = config.login.access(url.reveal())?;
        let connected = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            connected = nats::Broker::connect_with(&access, "dev") => connected,
        };
        connected.context("NATS cannot be used")?;
    }
    // Before anything is started. All of its files are read: Ctrl-C must not wait for that.
    let mut backup = match config.restore.clone() {
        None => None,
        Some(dir) => Some(tokio::select! {
            () = stop.cancelled() => std::process::exit(130),
            read = tokio::task::spawn_blocking(move || Restorable::read(&dir)) => read??,
        }),
    };
    // Missing programs are fetched during the start: Ctrl-C must not wait for that.
    let planning = tokio::task::spawn_blocking({
        let (config, data_dir) = (config.clone(), data_dir.clone());
        move || plan::plan(&config, &data_dir)
    });
    let plan = tokio::select! {
        () = stop.cancelled() => std::process::exit(130),
        plan = planning => plan??,
    };
    let mut running = Vec::new();
    let mut started = Ok(());
    for stage in plan.stages {
        let mut children = Vec::new();
        for spec in stage {
            let watched = spec.watched.clone();
            let child = Child::start(spec);
            if let Some(watched) = watched {
                tokio::spawn(broker::watch(watched, child.restart()));
            }
            children.push(child);
        }
        running.push(children);
        // The stores are the first stage.
        if running.len() == 1
            && let Some(backup) = backup.take()
        {
            started = tokio::select! {
                () = first_failure(&running) => Err(anyhow::anyhow!("a service cannot start")),
                restored = restore(&plan.storage, backup, &data_dir, &stop) => restored,
            };
            if started.is_err() {
                break;
            }
        }
    }
    if let Err(error) = started {
        drain(running).await;
        return Err(error);
    }
    let ready = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = first_failure(&running) => Err(anyhow::anyhow!("a service cannot start")),
        ready = ready::wait(&config.listen, config.processors) => ready,
    };
    if ready.is_ok() && !stop.is_cancelled() {
        println!("ready http://{}", config.listen);
        std::io::stdout().flush()?;
        stop.cancelled().await;
    }
    drain(running).await;
    ready.with_context(|| format!("the logs are in {}", data_dir.join("logs").display()))
}

/// The file that marks a data directory into which a restore has started and not completed.
const RESTORE_MARK: &str = "restore.incomplete";

/// Restores a backup once the stores answer.
async fn restore(
    storage: &Storage,
    backup: Restorable,
    data_dir: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let access = NatsLogin::default().access(storage.nats.reveal())?;
    let archive = Archive::open(&ClickHouseAccess::at(storage.clickhouse.clone()))?;
    let broker = Broker::connect_until(&access, "dev", names::job_streams(), stop).await?;
    archive.until_there(stop).await;
    let Some(broker) = broker.filter(|_| !stop.is_cancelled()) else {
        bail!("interrupted before anything was restored");
    };
    backup.check_stores(&broker, Some(&archive)).await?;
    let mark = data_dir.join(RESTORE_MARK);
    File::create(&mark)?.sync_all()?;
    tokio::select! {
        () = stop.cancelled() => bail!("{}", incomplete(data_dir)),
        restored = backup.restore(&broker, Some(&archive), Sizes::default()) => {
            restored.with_context(|| incomplete(data_dir))?;
        }
    }
    fs::remove_file(mark)?;
    Ok(())
}

fn incomplete(data_dir: &Path) -> String {
    let dir = data_dir.display();
    format!("the restore into {dir} has not completed: delete that directory, then restore again")
}

/// Keeps a second `dev` from the same data.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let lock = File::create(data_dir.join("dev.lock"))?;
    if lock.try_lock().is_err() {
        bail!(
            "another jobmesh dev runs on {}; give this one another --data-dir",
            data_dir.display()
        );
    }
    Ok(lock)
}

/// Waits until a child has died so often in a row that it will not come up.
async fn first_failure(running: &[Vec<Child>]) {
    let stop = CancellationToken::new();
    let waits = running.iter().flatten().map(|child| {
        let (failed, stop) = (child.failed(), stop.clone());
        tokio::spawn(async move {
            failed.cancelled().await;
            stop.cancel();
        })
    });
    let waits: Vec<_> = waits.collect();
    stop.cancelled().await;
    waits.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Stops the children in the order of the flow: clients before servers, the broker last.
async fn drain(running: Vec<Vec<Child>>) {
    eprintln!("draining");
    for stage in running.into_iter().rev() {
        let stopping: Vec<_> =
            stage.into_iter().map(|child| tokio::task::spawn(child.stop())).collect();
        for stopped in stopping {
            // A supervisor that failed has killed its child on its way.
            let _ = stopped.await;
        }
    }
}
