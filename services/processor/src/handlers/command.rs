//! `command`: runs a program for each job.
//!
//! The program gets the job as JSON on its standard input. Its standard output is read line by line
//! as JSON objects: `{"progress": any}` is shown while it runs, with `tokens`, `images` and `model`
//! for the usage so far; the last other line can hold the outcome, like an answer to the handler
//! `http`: `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m"}`.
//!
//! Exit status 0 is done, 65 (`EX_DATAERR`) is a failure for good, 75 (`EX_TEMPFAIL`) asks to come back
//! later (`afterMs` in the last line says when), any other is tried again; the end of its standard error
//! is kept as the job's error. When the program ends, when the run is cancelled or its time is over, and
//! when the processor dies, everything that it started is killed.

mod guard;
mod output;

use std::sync::Arc;

use job::Usage;
use nats::wire::Work;
use tokio::{io::AsyncWriteExt, process::Command as Process};

use super::answer::{self, Answer};
use crate::handler::{Context, Handler, Outcome};
use guard::{Program, Streams};

/// How much of the end of a program's standard error an error shows, in bytes.
const ERROR_BYTES_MAX: usize = 2 * 1024;
/// The exit status that says that the job's data can never be worked on: `EX_DATAERR` of sysexits.h.
const DATA_ERROR: i32 = 65;
/// The exit status that asks to come back later: `EX_TEMPFAIL` of sysexits.h.
const TEMPORARY_FAILURE: i32 = 75;
/// The variables that every program is given, if the processor has them: none of them is a secret.
const PLAIN_VARIABLES: [&str; 8] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR"];
/// How the names of further such variables begin.
const PLAIN_PREFIX: &str = "LC_";

/// Runs a program.
#[derive(Clone, Debug)]
pub struct Command {
    line: String,
    variables: Vec<String>,
    result_bytes_max: usize,
}

impl Command {
    /// Runs `line` by the shell for each job; results have at most `result_bytes_max` bytes.
    pub fn new(line: &str, result_bytes_max: usize) -> Self {
        Self { line: line.to_owned(), variables: Vec::new(), result_bytes_max }
    }

    /// Gives the program these variables of the processor's environment as well. It is given no others
    /// than the usual ones (`PATH`, `HOME`, `LANG` and so on), so that no secret of the processor
    /// reaches it by accident.
    #[must_use]
    pub fn with_variables(mut self, names: &[String]) -> Self {
        self.variables.extend_from_slice(names);
        self
    }

    async fn run(&self, work: &Work, context: &Context) -> std::io::Result<Outcome> {
        let (mut program, streams) = Program::start(self.process(work))?;
        let Streams { mut stdin, stdout, stderr } = streams;
        let job = serde_json::to_vec(&work.without_token())?;
        let write = async {
            // A program that does not read its job is free not to.
            let _ = stdin.write_all(&job).await;
            drop(stdin);
        };
        // The guard ends everything that could hold a pipe open when the program ends.
        let (status, (), last, errors) = tokio::join!(
            program.wait(),
            write,
            output::read(stdout, context, self.result_bytes_max),
            output::read_end(stderr, ERROR_BYTES_MAX)
        );
        let status = status?;
        let answer = match last {
            Ok(line) => answer::read(&line),
            Err(why) => Err(why),
        };
        let Answer { result, usage, after } = match answer {
            Ok(answer) => answer,
            Err(why) if status.success() => return Ok(Outcome::reject(why)),
            // What a program that failed wrote last is not looked at closely.
            Err(_) => Answer::default(),
        };
        let usage = if usage.is_nothing() { context.usage_so_far() } else { usage };
        if status.success() {
            return Ok(Outcome::Done { result, usage });
        }
        let errors = String::from_utf8_lossy(&errors);
        let error = format!("the program ended with {status}: {}", errors.trim());
        Ok(match status.code() {
            Some(DATA_ERROR) => Outcome::Reject { error, usage },
            Some(TEMPORARY_FAILURE) => Outcome::Defer { error, after, usage },
            _ => Outcome::Retry { error, after, usage },
        })
    }

    fn process(&self, work: &Work) -> Process {
        let mut process = Process::new("/bin/sh");
        process.args(["-c", &self.line]).env_clear();
        let plain = |name: &str| PLAIN_VARIABLES.contains(&name) || name.starts_with(PLAIN_PREFIX);
        for (name, value) in std::env::vars_os() {
            let Some(known) = name.to_str() else { continue };
            if plain(known) || self.variables.iter().any(|wanted| wanted == known) {
                process.env(name, value);
            }
        }
        process
            .env("JOBMESH_JOB", work.job.to_string())
            .env("JOBMESH_RUN", work.run.to_string())
            .env("JOBMESH_ATTEMPT", work.attempt.to_string())
            .envs(work.traceparent.map(|trace| ("TRACEPARENT", trace.to_string())));
        process
    }
}

impl Handler for Command {
    async fn handle(&self, work: Arc<Work>, context: Context) -> Outcome {
        match self.run(&work, &context).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Retry {
                error: format!("the program could not be run: {error}"),
                after: None,
                usage: Usage::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use job::Json;

    use super::*;
    use crate::handler::test_work;

    async fn run(line: &str) -> Outcome {
        Command::new(line, 1 << 24)
            .handle(Arc::new(test_work(r#"{"n":3}"#)), Context::default())
            .await
    }

    #[tokio::test]
    async fn a_program_reads_its_job_and_says_what_came_of_it() {
        let outcome = run(r#"read job; echo '{"progress":{"page":1}}'
               echo "{\"result\":$job,\"tokens\":{\"input\":5,\"output\":2},\"model\":\"m\"}""#);
        let Outcome::Done { result: Some(result), usage } = outcome.await else {
            panic!("it is done");
        };
        assert!(result.get().contains(r#""data":{"n":3}"#), "{}", result.get());
        assert_eq!((usage.input_tokens, usage.output_tokens), (5, 2));
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
            "it no longer runs: {behind:?}"
        );
    }

    #[tokio::test]
    async fn a_program_may_ask_to_come_back_later() {
        let later = run(r#"echo '{"afterMs":1500}'; echo busy >&2; exit 75"#).await;
        let Outcome::Defer { error, after, .. } = later else { panic!("{later:?}") };
        assert!(error.contains("busy"), "{error}");
        assert_eq!(after, Some(Duration::from_millis(1_500)));
    }

    #[tokio::test]
    async fn what_a_program_used_is_counted_however_it_ends() {
        let used = r#"echo '{"progress":1,"tokens":{"input":5,"output":2.0},"model":"m"}'"#;
        for end in ["exit 0", "exit 3", "exit 65"] {
            let outcome = run(&format!("{used}; {end}")).await;
            let (Outcome::Done { usage, .. }
            | Outcome::Retry { usage, .. }
            | Outcome::Reject { usage, .. }
            | Outcome::Defer { usage, .. }) = outcome;
            assert_eq!((usage.input_tokens, usage.output_tokens), (5, 2), "{end}");
        }
    }

    #[tokio::test]
    async fn odd_output_is_read_for_what_it_is_worth() {
        for (output, result) in [
            (r#"printf '\357\273\277{"result":3}'"#, Some("3")),
            (r#"echo '[4]'; echo '{"result":1}'"#, Some("1")),
            (r#"echo '{"result":1,"tokens":null}'"#, Some("1")),
            (r#"echo '{"result":1,"tokens":{"input":null}}'"#, Some("1")),
            (r#"echo '{"tokens":{"input":10.0}}'"#, None),
        ] {
            let outcome = run(output).await;
            let Outcome::Done { result: found, .. } = outcome else { panic!("{outcome:?}") };
            assert_eq!(found.as_ref().map(Json::get), result, "{output}");
        }
        for list in [r#"echo '["r", {"input":1}]'"#, "echo '[4]'"] {
            let outcome = run(list).await;
            assert!(matches!(outcome, Outcome::Reject { .. }), "{list}: {outcome:?}");
        }
        let long = run(
            r#"echo '{"progress":1}'; head -c 2097152 /dev/zero | tr '\0' x; echo; echo '{"result":5}'"#,
        );
        let Outcome::Reject { error, .. } = long.await else { panic!("it is refused") };
        assert_eq!(error, "the program wrote a line of more than 1048576 bytes");
        let large =
            run(r#"printf '{"result":"'; head -c 2097152 /dev/zero | tr '\0' x; echo '"}'"#);
        let Outcome::Done { result: Some(result), .. } = large.await else { panic!("it is done") };
        assert_eq!(result.get().len(), 2_097_154);
    }

    #[tokio::test]
    async fn a_program_is_given_no_variable_that_was_not_meant_for_it() {
        // Cargo sets it for this test; a program has no use for it.
        let name = "CARGO_MANIFEST_DIR";
        let line = format!(r#"printf '{{"result":"%s %s"}}' "${name}" "$JOBMESH_RUN""#);
        let result = async |command: Command| {
            let handled = command.handle(Arc::new(test_work("{}")), Context::default()).await;
            match handled {
                Outcome::Done { result: Some(result), .. } => result.get().to_owned(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(result(Command::new(&line, 1_000)).await, "\" 1\"");
        let allowed = Command::new(&line, 1_000).with_variables(&[name.to_owned()]);
        assert!(result(allowed).await.contains("processor"));
    }

    /// Waits until a file exists; returns its content.
    async fn written(file: &std::path::Path) -> String {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::read_to_string(file).expect("it is there")
    }

    async fn until_gone(pid: &str) {
        let stat = format!("/proc/{}/stat", pid.trim());
        let lives = || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
            !matches!(state, None | Some('Z'))
        };
        for _ in 0..2_000 {
            if !lives() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("process {pid} lives on");
    }

    /// A child, one in a session of its own, and one whose parent has exited.
    const CHILDREN: [&str; 3] = [
        "sleep 1000 & echo $! > FILE.new",
        "setsid sh -c 'echo $$ > FILE.new; exec sleep 1000' & while [ ! -s FILE.new ]; do :; done",
        "(setsid sh -c 'echo $$ > FILE.new; exec sleep 1000' &) ; while [ ! -s FILE.new ]; do :; done",
    ];

    #[tokio::test]
    async fn a_cancelled_program_is_killed_with_all_that_it_started() {
        for child in CHILDREN {
            let dir = tempfile::tempdir().expect("there is a folder");
            let file = dir.path().join("child");
            let line = format!("{child}; mv FILE.new FILE; wait; sleep 1000")
                .replace("FILE", &file.display().to_string());
            let program = Command::new(&line, 1_000);
            let work = Arc::new(test_work("{}"));
            let running =
                tokio::spawn(async move { program.handle(work, Context::default()).await });
            let pid = written(&file).await;
            running.abort();
            assert!(running.await.is_err_and(|error| error.is_cancelled()));
            until_gone(&pid).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_ends_leaves_nothing_behind() {
        for child in CHILDREN {
            let dir = tempfile::tempdir().expect("there is a folder");
            let file = dir.path().join("child");
            let line = format!(r#"{child}; mv FILE.new FILE; echo '{{"result":1}}'"#)
                .replace("FILE", &file.display().to_string());
            let outcome = run(&line).await;
            assert!(matches!(outcome, Outcome::Done { result: Some(_), .. }), "{outcome:?}");
            until_gone(&written(&file).await).await;
        }
    }
}
