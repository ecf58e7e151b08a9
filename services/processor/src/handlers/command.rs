//! `command`: runs a program for each job.
//!
//! The job comes as JSON on the program's standard input. What it writes to its standard output
//! is read line by line as JSON objects: `{"progress": any}` is shown while it runs; the last
//! other line may say what came of it, as an answer to the handler `http` does:
//! `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m"}`.
//!
//! Exit status 0 is done, 65 (`EX_DATAERR`) is a failure for good, any other is tried again; the
//! end of its standard error is kept as the job's error. Where the run is cancelled or its time
//! is over, the program is killed with all that it started.

use std::{process::Stdio, sync::Arc, time::Duration};

use job::Json;
use mesh::wire::Work;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command as Process},
};

use super::answer::{self, Answer};
use crate::handler::{Context, Handler, Outcome};

/// The longest line that a program may write, in bytes.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// How much of the end of a program's standard error an error shows, in bytes.
const ERROR_BYTES_MAX: usize = 2 * 1024;
/// How long the pipes of a program that has ended may stay open.
const PIPES_CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// The exit status that says that the job's data can never be worked on: `EX_DATAERR` of
/// sysexits.h.
const DATA_ERROR: i32 = 65;

/// Runs a program.
#[derive(Clone, Debug)]
pub struct Command {
    line: String,
}

impl Command {
    /// Runs `line` by the shell, for each job anew.
    pub fn new(line: &str) -> Self {
        Self { line: line.to_owned() }
    }

    async fn run(&self, work: &Work, context: &Context) -> std::io::Result<Outcome> {
        let mut program = Group::start(&self.line, work)?;
        let child = &mut program.child;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(std::io::Error::other("the program has no pipes"));
        };
        let job = serde_json::to_vec(work)?;
        let write = async {
            // A program that does not read its job is free not to.
            let _ = stdin.write_all(&job).await;
            drop(stdin);
        };
        let (mut last, mut errors) = (Ok(Vec::new()), Vec::new());
        let status = {
            let talk = async {
                tokio::join!(
                    write,
                    read_lines(stdout, context, &mut last),
                    read_last(stderr, &mut errors)
                )
            };
            tokio::pin!(talk);
            tokio::select! {
                _ = &mut talk => program.child.wait().await?,
                status = program.child.wait() => {
                    // What it left running may hold its pipes for ever.
                    let _ = tokio::time::timeout(PIPES_CLOSE_WITHIN, talk).await;
                    status?
                }
            }
        };
        let answer = match last {
            Ok(line) => answer::read(&line),
            Err(why) => Err(why),
        };
        let Answer { result, spent } = match answer {
            Ok(answer) => answer,
            Err(why) if status.success() => return Ok(Outcome::reject(why)),
            // What a program that failed says is not looked at closely.
            Err(_) => Answer::default(),
        };
        let errors = String::from_utf8_lossy(&errors);
        if status.success() {
            return Ok(Outcome::Done { result, spent });
        }
        let error = format!("the program ended with {status}: {}", errors.trim());
        Ok(match status.code() {
            Some(DATA_ERROR) => Outcome::Reject { error, spent },
            _ => Outcome::Retry { error, after: None, spent },
        })
    }
}

impl Handler for Command {
    async fn handle(&self, work: Arc<Work>, context: Context) -> Outcome {
        match self.run(&work, &context).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::retry(format!("the program could not be run: {error}")),
        }
    }
}

/// A program with all that it starts, killed when this is dropped.
struct Group {
    child: Child,
    id: Option<libc::pid_t>,
}

impl Group {
    fn start(line: &str, work: &Work) -> std::io::Result<Self> {
        let child = Process::new("/bin/sh")
            .args(["-c", line])
            .env("JOBMESH_JOB", work.job.to_string())
            .env("JOBMESH_ATTEMPT", work.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that it can be killed as a whole.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let id = child.id().and_then(|id| libc::pid_t::try_from(id).ok());
        Ok(Self { child, id })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // SAFETY: takes two numbers and touches no memory. The group is the child's own; what
            // is left in it after the child has ended is to go as well.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
}

/// Reads what a program says, line by line: shows its progress, and keeps the last other line.
async fn read_lines(
    stdout: impl AsyncRead + Unpin,
    context: &Context,
    last: &mut Result<Vec<u8>, String>,
) {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(LINE_BYTES_MAX);
        let Ok(read @ 1..) = limited.read_until(b'\n', &mut line).await else { return };
        if read as u64 == LINE_BYTES_MAX {
            *last = Err(format!("the program wrote a line of more than {LINE_BYTES_MAX} bytes"));
            return;
        }
        match progress(&line) {
            Some(progress) => context.progress(progress),
            None if line.iter().all(u8::is_ascii_whitespace) => {}
            None => *last = Ok(line),
        }
    }
}

/// The progress that a line says, where it says nothing else.
fn progress(line: &[u8]) -> Option<Json> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        progress: Json,
    }
    serde_json::from_slice::<Line>(line).ok().map(|line| line.progress)
}

/// Keeps the end of what a program complains of.
async fn read_last(mut stderr: impl AsyncRead + Unpin, last: &mut Vec<u8>) {
    let mut chunk = [0; 4_096];
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        last.extend_from_slice(&chunk[..read]);
        let over = last.len().saturating_sub(ERROR_BYTES_MAX);
        last.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::test_work;

    async fn run(line: &str) -> Outcome {
        Command::new(line).handle(Arc::new(test_work(r#"{"n":3}"#)), Context::default()).await
    }

    #[tokio::test]
    async fn a_program_reads_its_job_and_says_what_came_of_it() {
        let outcome = run(r#"read job; echo '{"progress":{"page":1}}'
               echo "{\"result\":$job,\"tokens\":{\"input\":5,\"output\":2},\"model\":\"m\"}""#);
        let Outcome::Done { result: Some(result), spent } = outcome.await else {
            panic!("it is done");
        };
        assert!(result.get().contains(r#""data":{"n":3}"#), "{}", result.get());
        assert_eq!((spent.input_tokens, spent.output_tokens), (5, 2));
        assert!(matches!(run("cat >/dev/null").await, Outcome::Done { result: None, .. }));
    }

    #[tokio::test]
    async fn its_exit_status_says_whether_to_try_again() {
        let Outcome::Retry { error, .. } = run("echo no paper >&2; exit 3").await else {
            panic!("it is tried again");
        };
        assert!(error.contains("no paper") && error.contains('3'), "{error}");
        assert!(matches!(run("exit 65").await, Outcome::Reject { .. }));
        assert!(matches!(run("kill -9 $$").await, Outcome::Retry { .. }));
        assert!(matches!(run("echo nonsense").await, Outcome::Reject { .. }));
        assert!(matches!(run("echo nonsense; exit 3").await, Outcome::Retry { .. }));
        let words = run(r#"echo trace; echo '{"result":1}'"#).await;
        assert!(
            matches!(words, Outcome::Done { result: Some(_), .. }),
            "only the last line counts"
        );
        let behind = run(r#"sleep 1000 & echo '{"result":2}'"#).await;
        assert!(
            matches!(behind, Outcome::Done { result: Some(_), .. }),
            "it has ended: {behind:?}"
        );
    }

    #[tokio::test]
    async fn it_is_killed_with_its_children() {
        let dir = tempfile::tempdir().expect("there is a folder");
        let file = dir.path().join("child");
        let line = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let program = Command::new(&line);
        let work = Arc::new(test_work("{}"));
        let running = tokio::spawn(async move { program.handle(work, Context::default()).await });
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let child = std::fs::read_to_string(&file).expect("it says its child's id");
        running.abort();
        assert!(running.await.is_err_and(|error| error.is_cancelled()));
        let stat = format!("/proc/{}/stat", child.trim());
        let lives = || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            !matches!(
                stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()),
                None | Some('Z')
            )
        };
        for _ in 0..2_000 {
            if !lives() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the child lives on");
    }
}
