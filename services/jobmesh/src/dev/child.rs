//! A child process under supervision: restarted with backoff when it dies, stopped in order, and
//! killed by the system when this process dies, however that happens.

use std::{
    fs::OpenOptions,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{process::Command, sync::Notify};
use tokio_util::sync::CancellationToken;

use super::plan::Spec;

/// The first wait before a restart; each further one doubles it.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest wait before a restart.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a child has to live for its restarts to be forgotten.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// Deaths in a row after which a child will not come up.
const DEATHS_MAX: u32 = 5;
/// The exit status of a service whose settings are invalid.
const INVALID: i32 = 2;
/// Lines of its log that are shown of a child that will not come up.
const LAST_LINES: usize = 5;

/// A supervised child.
pub(super) struct Child {
    stop: CancellationToken,
    failed: CancellationToken,
    restart: Arc<Notify>,
    supervisor: tokio::task::JoinHandle<()>,
}

impl Child {
    /// Starts it.
    pub fn start(spec: Spec) -> Self {
        let (stop, failed) = (CancellationToken::new(), CancellationToken::new());
        let restart = Arc::new(Notify::new());
        let supervisor =
            tokio::spawn(supervise(spec, stop.clone(), failed.clone(), restart.clone()));
        Self { stop, failed, restart, supervisor }
    }

    /// Stops it in order and starts it again, whenever this is notified.
    pub fn restart(&self) -> Arc<Notify> {
        self.restart.clone()
    }

    /// Cancelled once the child has died too often in a row.
    pub fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Stops it and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        // A supervisor that failed has dropped its child, which kills it.
        let _ = self.supervisor.await;
    }
}

async fn supervise(
    spec: Spec,
    stop: CancellationToken,
    failed: CancellationToken,
    restart: Arc<Notify>,
) {
    let mut deaths = 0;
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let mut has_invalid_settings = false;
        let why = match spawn(&spec) {
            Err(error) => error.to_string(),
            Ok(mut child) => tokio::select! {
                ended = child.wait() => match ended {
                    Ok(status) => {
                        has_invalid_settings = spec.is_service() && status.code() == Some(INVALID);
                        status.to_string()
                    }
                    Err(error) => error.to_string(),
                },
                () = stop.cancelled() => return end(&spec, child).await,
                () = restart.notified() => {
                    end(&spec, child).await;
                    continue;
                }
            },
        };
        if has_invalid_settings {
            eprintln!("a setting of {} is invalid; it says:\n{}", spec.name, last_lines(&spec));
            return failed.cancel();
        }
        deaths = if begun.elapsed() > STEADY_AFTER { 1 } else { deaths + 1 };
        eprintln!(
            "{} ended ({why}), starting it again; its log is {}",
            spec.name,
            spec.log.display()
        );
        if deaths >= DEATHS_MAX {
            eprintln!("{} does not come up; it says:\n{}", spec.name, last_lines(&spec));
            failed.cancel();
        }
        let pause = RESTART_PAUSE_MIN * 2u32.pow((deaths - 1).min(6));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause.min(RESTART_PAUSE_MAX)) => {}
        }
    }
}

/// The end of a child's log, which shows why it died.
fn last_lines(spec: &Spec) -> String {
    let log = std::fs::read_to_string(&spec.log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

fn spawn(spec: &Spec) -> std::io::Result<tokio::process::Child> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .env_clear()
        .envs(spec.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A terminal's Ctrl-C goes to its whole process group: the children wait for their turn.
        .process_group(0)
        .kill_on_drop(true);
    die_with_parent(&mut command);
    command.spawn()
}

/// Makes the system kill the child when the thread that started it exits.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let bind = move || {
        // SAFETY: both calls are async-signal-safe and touch nothing of this process's memory.
        let (bound, now) =
            unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if bound != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have died before the binding was made.
        if u32::try_from(now) != Ok(parent) {
            return Err(std::io::Error::other("the parent has exited"));
        }
        Ok(())
    };
    // SAFETY: the closure only makes the two calls above between fork and exec.
    unsafe { command.pre_exec(bind) };
}

/// Elsewhere children are killed when this process ends in order or by a panic, not by SIGKILL.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// Asks a child to stop, and kills it if it does not.
async fn end(spec: &Spec, mut child: tokio::process::Child) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // SAFETY: the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
    if tokio::time::timeout(spec.stop_within, child.wait()).await.is_err() {
        eprintln!(
            "{} did not stop within {} s and is killed",
            spec.name,
            spec.stop_within.as_secs()
        );
        let _ = child.kill().await;
    }
}
