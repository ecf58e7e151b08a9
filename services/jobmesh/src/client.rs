//! The commands of clients: the queue API from a terminal or a script.
//!
//! Exit status: 0 success; 1 an unexpected error; 2 invalid arguments; 3 the request was refused,
//! see the answer; 4 no edge answers, its certificate is not accepted, or it asks to retry later; 5 a watched job did not
//! complete.

mod api;
mod doctor;
mod json;
mod keys;
mod probe;
mod processor_login;
mod show;
mod upgrade;
mod watch;

use std::{collections::BTreeMap, io::Read, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use api::Api;
use json::Json;

/// The address of the edge, and the format of answers.
#[derive(Clone, Debug, Args)]
pub(crate) struct Server {
    /// The URL of an edge.
    #[arg(long, env = "JOBMESH_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The file with the API key; JOBMESH_KEY may hold the key itself.
    #[arg(long, env = "JOBMESH_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Show the answer as JSON, for scripts.
    #[arg(long)]
    json: bool,
}

/// What clients can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enqueues batches.
    Enqueue(Enqueue),
    /// Shows a job.
    Status {
        /// The job.
        job: String,
        /// Wait for its end up to so long: 30s, 500ms.
        #[arg(long)]
        wait: Option<String>,
        /// Show every step.
        #[arg(long)]
        history: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Follows a job, or the jobs of a batch, to the end.
    Watch {
        /// The job.
        #[arg(required_unless_present = "batch", conflicts_with = "batch")]
        job: Option<String>,
        /// The project of the batch.
        #[arg(long, requires = "batch")]
        project: Option<String>,
        /// The batch.
        #[arg(long, requires = "project")]
        batch: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Queues failed jobs again.
    Retry {
        /// The project.
        #[arg(long)]
        project: String,
        /// The job.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        job: Option<String>,
        /// All failed jobs of the project.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Cancels the jobs of a project, or of some of its batches.
    Cancel {
        /// The project.
        #[arg(long)]
        project: String,
        /// The batches; all of the project if none is named.
        #[arg(long = "batch")]
        batches: Vec<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Shows how many jobs there are in which status.
    Stats {
        /// Of this project.
        #[arg(long)]
        project: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Shows durations, tokens and outcomes over a range of time.
    Metrics {
        /// Of this project.
        #[arg(long)]
        project: Option<String>,
        /// 24h, 7d, 30d or all.
        #[arg(long, default_value = "24h")]
        range: String,
        #[command(flatten)]
        server: Server,
    },
    /// Shows the settings of a project, or changes them.
    Projects {
        /// The project.
        project: String,
        /// A setting, as name=JSON: maxConcurrency=4, paused=true, weight=null. May be repeated.
        #[arg(long = "set", value_name = "NAME=JSON")]
        set: Vec<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Makes, lists, revokes and rotates API keys.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Checks a mesh, and says what to do.
    Doctor(doctor::Doctor),
    /// Copies everything that a mesh has stored into a directory, while it works.
    Backup(Box<crate::backup::Backup>),
    /// Restores a backup into a NATS account and a ClickHouse database that are empty, while no service runs.
    Restore(Box<crate::backup::Restore>),
    /// Says whether this program can join the mesh that runs, and in which order to replace services.
    Upgrade(Box<upgrade::Upgrade>),
    /// Writes the statements that make the tables in ClickHouse, for those who want to run them themselves.
    ClickhouseSchema {
        /// The name of a ClickHouse cluster with one shard: on all of its servers, replicated.
        #[arg(long)]
        cluster: Option<metrics::ClusterName>,
    },
    /// Asks a service whether it is ready, and exits with 0 if it is: for health checks of containers.
    Probe {
        /// The URL of a probe, such as http://127.0.0.1:9464/readyz.
        url: String,
    },
    /// Writes the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The request of `enqueue`.
#[derive(Debug, Args)]
pub(crate) struct Enqueue {
    /// The project.
    #[arg(long)]
    project: String,
    /// The batches.
    #[arg(required = true)]
    batches: Vec<String>,
    /// The data of each job: a JSON object, or - to read it from standard input.
    #[arg(long)]
    data: Option<String>,
    /// 0 to 1000, lower first.
    #[arg(long)]
    priority: Option<u16>,
    /// Not before this time, as RFC 3339.
    #[arg(long)]
    run_at: Option<String>,
    /// Seconds that each job may wait before it is canceled.
    #[arg(long)]
    expires_in: Option<u32>,
    /// Attempts that each job may use.
    #[arg(long)]
    max_attempts: Option<u32>,
    /// A key that makes a repeat of this command harmless.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Follow the jobs to their end.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    server: Server,
}

/// The exit status for invalid arguments, as clap has it.
const INVALID: u8 = 2;

/// An argument without a meaning.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(String);

/// Runs a command; the status to exit with.
pub(crate) fn main(command: Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(act(command))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("jobmesh: {error:#}");
            let refusal = error.downcast_ref::<api::Refused>().map(api::Refused::exit_status);
            let invalid = error.is::<Invalid>().then_some(INVALID);
            ExitCode::from(refusal.or(invalid).unwrap_or(1))
        }
    }
}

async fn act(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Enqueue(request) => return enqueue(request).await,
        Command::Status { job, wait, history, server } => {
            let mut query = vec![("history", history.to_string())];
            query.extend(wait.map(|wait| ("wait", wait)));
            let path = format!("/api/queue/status/{job}");
            let answer = Api::new(&server)?.get(&path, &query).await?;
            show::answer(server.json, &answer, |answer| show::job(&answer.field("job")))?;
        }
        Command::Watch { job, project, batch, server } => {
            let api = Api::new(&server)?;
            let followed = match (job, project, batch) {
                (Some(job), ..) => watch::Followed::job(&api, job).await?,
                (None, Some(project), Some(batch)) => {
                    watch::Followed::batch(&api, project, batch).await?
                }
                _ => anyhow::bail!("name a job, or --project and --batch"),
            };
            return watch::to_the_end(&api, followed, server.json).await;
        }
        Command::Retry { project, job, all, server } => {
            let mut body = json!({ "projectId": project });
            match job {
                Some(job) if !all => body["jobId"] = job.into(),
                _ => body["retryAll"] = true.into(),
            }
            done(&server, "/api/queue/retry", &body).await?;
        }
        Command::Cancel { project, batches, server } => {
            let mut body = json!({ "projectId": project });
            if !batches.is_empty() {
                body["batchIds"] = batches.into();
            }
            done(&server, "/api/queue/cancel", &body).await?;
        }
        Command::Stats { project, server } => {
            let query: Vec<_> = project.map(|project| ("projectId", project)).into_iter().collect();
            let answer = Api::new(&server)?.get("/api/queue/stats", &query).await?;
            show::answer(server.json, &answer, show::stats)?;
        }
        Command::Metrics { project, range, server } => {
            let mut query = vec![("timeRange", range)];
            query.extend(project.map(|project| ("projectId", project)));
            let answer = Api::new(&server)?.get("/api/queue/metrics", &query).await?;
            show::answer(server.json, &answer, |answer| show::metrics(&answer.field("stats")))?;
        }
        Command::Projects { project, set, server } => {
            let api = Api::new(&server)?;
            let answer = if set.is_empty() {
                api.get_in(&["api", "projects", &project], &[]).await?
            } else {
                let change: anyhow::Result<BTreeMap<String, Box<RawValue>>> =
                    set.iter().map(|set| setting(set)).collect();
                api.put_in(&["api", "projects", &project], &change?).await?
            };
            show::answer(server.json, &answer, |answer| show::fields(&answer.field("project")))?;
        }
        Command::Keys(keys) => keys::act(keys).await?,
        Command::Doctor(doctor) => return doctor.run().await,
        Command::Backup(backup) => backup.run().await?,
        Command::Restore(restore) => restore.run().await?,
        Command::Upgrade(upgrade) => return upgrade.run().await,
        Command::ClickhouseSchema { cluster } => {
            show::print(metrics::schema::sql(cluster.as_ref()).trim_end())?;
        }
        Command::Probe { url } => return probe::probe(&url).await,
        Command::Completions { shell } => {
            let mut command = <crate::Cli as clap::CommandFactory>::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "jobmesh", &mut script);
            show::print(String::from_utf8_lossy(&script).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The body of an enqueue.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EnqueueBody<'a> {
    project_id: &'a str,
    batch_ids: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<BTreeMap<&'a str, &'a RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
}

async fn enqueue(request: Enqueue) -> anyhow::Result<ExitCode> {
    let data = data(request.data.as_deref())?;
    let keyed = |data| {
        request.batches.iter().map(|batch| (batch.as_str(), data)).collect::<BTreeMap<_, _>>()
    };
    let body = EnqueueBody {
        project_id: &request.project,
        batch_ids: &request.batches,
        data: data.as_deref().map(keyed),
        priority: request.priority,
        run_at: request.run_at.as_deref(),
        expires_in: request.expires_in,
        max_attempts: request.max_attempts,
    };
    let api = Api::new(&request.server)?;
    let key = request.idempotency_key.as_deref();
    let answer = api.post("/api/queue/enqueue", &body, key).await?;
    if !request.watch {
        show::answer(request.server.json, &answer, show::enqueued)?;
        return Ok(ExitCode::SUCCESS);
    }
    let jobs = answer.field("jobIds").items();
    let jobs: Vec<String> = jobs.iter().filter_map(Json::as_string).collect();
    let followed = watch::Followed::jobs(jobs.clone(), Some(request.project));
    let followed = watch::to_the_end(&api, followed, request.server.json).await;
    // The exit status must not say that the request was refused.
    followed.map_err(|error| {
        anyhow::anyhow!("enqueued {}, and cannot follow: {error:#}", jobs.join(" "))
    })
}

/// Posts a request whose answer says in a sentence what was done.
async fn done(server: &Server, path: &str, body: &Value) -> anyhow::Result<()> {
    let answer = Api::new(server)?.post(path, body, None).await?;
    show::answer(server.json, &answer, show::message)
}

fn data(text: Option<&str>) -> anyhow::Result<Option<Box<RawValue>>> {
    let text = match text {
        None => return Ok(None),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        Some(text) => text.to_owned(),
    };
    // Editors and programs of Windows write a byte order mark first.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let data: Box<RawValue> = serde_json::from_str(text)
        .map_err(|error| Invalid(format!("--data is not JSON: {error}")))?;
    if !data.get().starts_with('{') {
        return Err(Invalid("--data must be a JSON object".to_owned()).into());
    }
    Ok(Some(data))
}

fn setting(text: &str) -> anyhow::Result<(String, Box<RawValue>)> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Invalid(format!("--set {text}: it is not name=JSON, such as weight=2")))?;
    // A bare word is a text: handler=llm.
    let value = match serde_json::from_str(value) {
        Ok(value) => value,
        Err(_) => serde_json::value::to_raw_value(value)?,
    };
    Ok((name.to_owned(), value))
}
