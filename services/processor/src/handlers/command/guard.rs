//! A program with everything that it starts, killed as a whole.
//!
//! A guard stands between processor and program: a copy of the processor that does nothing but
//! wait. It is the subreaper of the program: a process that the program starts, also in a session
//! of its own, becomes a child of the guard once its parent exits. The guard kills its children
//! until none is left when the program exits, when it is asked to, and when the processor dies for
//! any reason.

use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// A running program behind its guard. Dropping it kills the program with all that it started.
pub(super) struct Program {
    guard: Child,
    pid: Option<libc::pid_t>,
}

/// The three streams of a program.
pub(super) struct Streams {
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

impl Program {
    /// Starts a program.
    pub fn start(mut command: Command) -> std::io::Result<(Self, Streams)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: a terminal's Ctrl-C is for the processor, which ends its jobs in order.
        command.process_group(0);
        linux::guard(&mut command);
        let mut guard = command.spawn()?;
        let pid = guard.id().and_then(|pid| libc::pid_t::try_from(pid).ok());
        let streams = (guard.stdin.take(), guard.stdout.take(), guard.stderr.take());
        let program = Self { guard, pid };
        match streams {
            (Some(stdin), Some(stdout), Some(stderr)) => {
                Ok((program, Streams { stdin, stdout, stderr }))
            }
            _ => Err(std::io::Error::other("the program has no pipes")),
        }
    }

    /// Waits for the program to end, and for all that it started to be gone. Safe to be cancelled.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.guard.wait().await?;
        self.pid = None;
        Ok(status)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // SAFETY: takes two numbers and touches no memory. The guard was not waited for, so that
            // the id is still its own.
            unsafe { libc::kill(pid, linux::KILL_ALL) };
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{io, mem::MaybeUninit, ptr};

    use tokio::process::Command;

    /// Asks the guard to kill everything.
    pub const KILL_ALL: libc::c_int = libc::SIGTERM;
    /// Notifies the guard that the thread which started it, and perhaps its process, has exited.
    const PARENT_DIED: libc::c_int = libc::SIGUSR2;
    /// The exit status of a guard that was asked to kill everything.
    const KILLED: libc::c_int = 137;

    /// Puts a guard between this process and the program.
    pub fn guard(command: &mut Command) {
        let processor = std::process::id().cast_signed();
        // SAFETY: between fork and exec the closure makes system calls only, and touches no memory but
        // its own stack: the other threads of the processor do not exist there.
        unsafe { command.pre_exec(move || fork_guard(processor)) };
    }

    /// Forks: the parent becomes the guard and never returns, the child goes on to be the program.
    ///
    /// # Safety
    /// To be called between fork and exec.
    unsafe fn fork_guard(processor: libc::pid_t) -> io::Result<()> {
        // SAFETY: system calls on numbers and on memory of this stack.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, PARENT_DIED))?;
            check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            let mut before = MaybeUninit::uninit();
            check(libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()))?;
            if libc::getppid() != processor {
                return Err(io::Error::other("the processor has exited"));
            }
            let guard = libc::getpid();
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                    if libc::getppid() != guard {
                        return Err(io::Error::other("the guard has exited"));
                    }
                    check(libc::setpgid(0, 0))?;
                    check(libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()))
                }
                program => watch(processor, program),
            }
        }
    }

    fn check(result: libc::c_int) -> io::Result<()> {
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The guard: waits for the end of the program, of the processor, or for the request to end both.
    ///
    /// # Safety
    /// As of [`fork_guard`].
    unsafe fn watch(processor: libc::pid_t, program: libc::pid_t) -> ! {
        // SAFETY: system calls on numbers and on memory of this stack.
        unsafe {
            // Only the program holds the pipes: their ends must show that it has exited.
            libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
            let mut wanted = MaybeUninit::uninit();
            libc::sigemptyset(wanted.as_mut_ptr());
            for signal in [libc::SIGCHLD, KILL_ALL, PARENT_DIED] {
                libc::sigaddset(wanted.as_mut_ptr(), signal);
            }
            loop {
                match libc::sigwaitinfo(wanted.as_ptr(), ptr::null_mut()) {
                    libc::SIGCHLD => {
                        if let Some(status) = reap(program) {
                            kill_all();
                            end_as(status);
                        }
                    }
                    KILL_ALL => {
                        kill_all();
                        libc::_exit(KILLED);
                    }
                    // A thread may end while its process goes on.
                    PARENT_DIED if libc::getppid() != processor => {
                        kill_all();
                        libc::_exit(KILLED);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reaps all children that have exited; returns the program's status if it is among them.
    ///
    /// # Safety
    /// As of [`fork_guard`].
    unsafe fn reap(program: libc::pid_t) -> Option<libc::c_int> {
        let mut found = None;
        loop {
            let mut status = 0;
            // SAFETY: the status is a number on this stack.
            match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
                0 | -1 => return found,
                pid if pid == program => found = Some(status),
                _ => {}
            }
        }
    }

    /// Kills the children until none is left. Those of a killed one become children of the guard.
    ///
    /// # Safety
    /// As of [`fork_guard`].
    unsafe fn kill_all() {
        loop {
            // SAFETY: system calls on numbers and on memory of this stack.
            unsafe {
                kill_children();
                if libc::waitpid(-1, ptr::null_mut(), 0) == -1 {
                    return;
                }
            }
        }
    }

    /// Kills each process that the kernel lists as a child of this one.
    ///
    /// # Safety
    /// As of [`fork_guard`].
    unsafe fn kill_children() {
        // SAFETY: system calls on numbers and on memory of this stack. The file lists process ids with
        // a space behind each; a number may be cut by the end of the buffer.
        unsafe {
            let file = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY);
            if file == -1 {
                return;
            }
            let mut buffer = [0u8; 1_024];
            let mut pid: libc::pid_t = 0;
            loop {
                let read = libc::read(file, buffer.as_mut_ptr().cast(), buffer.len());
                let Some(read) = usize::try_from(read).ok().filter(|read| *read > 0) else { break };
                let mut at = 0;
                while at < read {
                    let byte = buffer[at];
                    if byte.is_ascii_digit() {
                        pid = pid.wrapping_mul(10).wrapping_add(libc::pid_t::from(byte - b'0'));
                    } else if pid > 0 {
                        libc::kill(pid, libc::SIGKILL);
                        pid = 0;
                    }
                    at += 1;
                }
            }
            libc::close(file);
        }
    }

    /// Ends the guard as the program ended.
    ///
    /// # Safety
    /// As of [`fork_guard`].
    unsafe fn end_as(status: libc::c_int) -> ! {
        // SAFETY: system calls on numbers and on memory of this stack.
        unsafe {
            if libc::WIFSIGNALED(status) {
                let signal = libc::WTERMSIG(status);
                let mut one = MaybeUninit::uninit();
                libc::sigemptyset(one.as_mut_ptr());
                libc::sigaddset(one.as_mut_ptr(), signal);
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
                libc::sigprocmask(libc::SIG_UNBLOCK, one.as_ptr(), ptr::null_mut());
                libc::_exit(128 + signal);
            }
            libc::_exit(libc::WEXITSTATUS(status))
        }
    }
}

/// Elsewhere the process group of the program is killed, which a program may leave.
#[cfg(not(target_os = "linux"))]
mod linux {
    use tokio::process::Command;

    /// Ends the program.
    pub const KILL_ALL: libc::c_int = libc::SIGKILL;

    pub fn guard(_: &mut Command) {}
}
