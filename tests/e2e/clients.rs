//! Public clients, installed once from their registries, and what the tests run with them.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, OnceLock},
};

use anyhow::{Context, ensure};

use crate::mesh::until;

/// The folder of the installed clients, in the target directory.
const INSTALLED: &str = env!("CARGO_TARGET_TMPDIR");
/// The folder that says which.
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
/// The folder of the programs that use the console.
const CONSOLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/console");
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/samples");

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    // The figures that a program prints are part of the output of its test.
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Does something once for all tests of this process, and tells each how it went.
fn once(
    done: &OnceLock<Result<PathBuf, String>>,
    work: impl FnOnce() -> anyhow::Result<PathBuf>,
) -> anyhow::Result<PathBuf> {
    let done = done.get_or_init(|| work().map_err(|error| format!("{error:#}")));
    done.clone().map_err(anyhow::Error::msg)
}

/// A folder with the packages of tests/clients/package.json, and the programs that use them.
fn node_folder() -> anyhow::Result<PathBuf> {
    static DONE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&DONE, || {
        let dir = install(Path::new(CLIENTS), "node")?;
        for sample in ["follow.mjs", "webhook.mjs"] {
            std::fs::copy(Path::new(SAMPLES).join(sample), dir.join(sample))?;
        }
        Ok(dir)
    })
}

/// Copies the files of a folder of this crate to a folder in the target directory, and installs its packages.
fn install(source: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let dir = Path::new(INSTALLED).join(name);
    std::fs::create_dir_all(&dir)?;
    for entry in std::fs::read_dir(source)? {
        let path = entry?.path();
        if let (true, Some(file)) = (path.is_file(), path.file_name()) {
            std::fs::copy(&path, dir.join(file))?;
        }
    }
    run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&dir))?;
    Ok(dir)
}

/// Runs a program of tests/console, in a browser; fails with what it writes.
pub fn browse(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    static DONE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = once(&DONE, || install(Path::new(CONSOLE), "console"))?;
    run(Command::new("node").current_dir(dir).arg(program).args(arguments))
}

/// A Python with the packages of tests/clients/requirements.txt.
fn python() -> anyhow::Result<PathBuf> {
    static DONE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&DONE, || {
        let dir = Path::new(INSTALLED).join("python");
        let python = dir.join("bin/python3");
        run(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
        let list = Path::new(CLIENTS).join("requirements.txt");
        run(Command::new(&python).args(["-m", "pip", "install", "-q", "-r"]).arg(list))?;
        Ok(python)
    })
}

/// Runs a program of tests/clients in Python to its end; fails with what it writes.
pub fn run_python(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new(python()?).arg(Path::new(CLIENTS).join(program)).args(arguments))
}

/// The same for Node.
pub fn run_node(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("node").current_dir(node_folder()?).arg(program).args(arguments))
}

/// A client that runs, and the lines that it has written; killed when it is dropped.
pub struct Client {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Client {
    /// Runs one of the programs for Node.
    pub fn node(program: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut node = Command::new("node");
        Self::start(node.current_dir(node_folder()?).arg(program).args(arguments))
    }

    /// Runs one of the samples in Python.
    pub fn python(sample: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::python_with(sample, arguments, &[])
    }

    /// The same with variables in its environment.
    pub fn python_with(
        sample: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let program = Path::new(SAMPLES).join(sample);
        let mut python = Command::new(python()?);
        Self::start(python.arg(program).args(arguments).envs(environment.iter().copied()))
    }

    /// Tests an API against its document, with schemathesis; returns its output, and whether it
    /// found nothing.
    pub fn schemathesis(arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let program = python()?.with_file_name("schemathesis");
        // It remembers what failed in the folder where it runs.
        let settings = Path::new(CLIENTS).join("schemathesis.toml");
        let mut program = Command::new(program);
        program.arg("--config-file").arg(settings).args(arguments).current_dir(INSTALLED);
        let output = program.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output.status.success(), text + &String::from_utf8_lossy(&output.stderr)))
    }

    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().context("stdout is piped")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        Ok(Self { process, lines })
    }

    /// What it has written.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until it has written this line.
    pub async fn says(&self, line: &str) -> anyhow::Result<()> {
        until(&format!("{line:?} said"), async || {
            let lines = self.lines();
            Ok(if lines.iter().any(|said| said == line) { Ok(()) } else { Err(lines.join("\n")) })
        })
        .await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
