//! `doctor`: what works, what does not, and what to do about it.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use job::JobType;
use nats::{
    Broker,
    access::{Access, Secret},
    names,
    topology::{self, Sizes},
};
use reqwest::StatusCode;
use serde_json::json;
use service::{NatsLogin, NatsUrl};

use super::{
    Server,
    api::{Api, Refused},
    json::Json,
    show,
};

/// How long one check may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The first nats-server with all that Jobmesh uses.
const NATS_MIN: (u64, u64) = (2, 12);
/// How far the clock of this machine may be off the edge's, in seconds.
const SKEW_S_MAX: i64 = 2;

/// The addresses of the parts of a mesh.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    server: Server,
    /// The NATS server, to be looked at as well.
    #[arg(long, env = "JOBMESH_NATS_URL", hide_env_values = true)]
    nats_url: Option<NatsUrl>,
    #[command(flatten)]
    login: NatsLogin,
    /// ClickHouse's HTTP interface, to be looked at as well.
    #[arg(long, env = "JOBMESH_CLICKHOUSE_URL", hide_env_values = true)]
    clickhouse_url: Option<Secret>,
}

/// One check: its name, whether it passed, and the finding or the remedy.
struct Check {
    what: &'static str,
    well: bool,
    says: String,
}

impl Check {
    fn new(what: &'static str, found: Result<String, String>) -> Self {
        let well = found.is_ok();
        Self { what, well, says: found.unwrap_or_else(|error| error) }
    }
}

impl Doctor {
    /// Checks all that can be reached.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut checks = self.edge().await?;
        if let Some(url) = &self.nats_url {
            checks.extend(match self.login.access(url.reveal()) {
                Ok(access) => nats(&access).await,
                Err(error) => vec![Check::new("nats", Err(format!("{error:#}")))],
            });
        }
        if let Some(url) = &self.clickhouse_url {
            checks.push(Check::new("clickhouse", clickhouse(url.reveal()).await));
        }
        let well = checks.iter().all(|check| check.well);
        if self.server.json {
            let list = checks
                .iter()
                .map(|check| json!({ "check": check.what, "ok": check.well, "says": check.says }));
            let found = json!({ "ok": well, "checks": list.collect::<Vec<_>>() });
            show::print(&found.to_string())?;
        } else {
            let rows = checks.iter().map(|check| {
                let mark = if check.well { "ok" } else { "NOT OK" };
                [check.what.to_owned(), mark.to_owned(), check.says.clone()]
            });
            show::print(show::table(["check", "", ""], rows.collect()).trim_end())?;
        }
        Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The edge, what it reaches, and its clock.
    async fn edge(&self) -> anyhow::Result<Vec<Check>> {
        let api = Api::new(&self.server)?;
        let url = api.base().join("/readyz")?;
        let http = outbound::builder().timeout(WITHIN).build()?;
        let response = match http.get(url).send().await {
            Ok(response) => response,
            Err(error) => {
                let says = format!("{:#}", anyhow::Error::from(api.away(error)));
                return Ok(vec![Check::new("edge", Err(says))]);
            }
        };
        let header = |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok());
        let clock = header("date").map(clock);
        let server = header("server").unwrap_or("no Jobmesh").to_owned();
        let ready: serde_json::Value = response.json().await.unwrap_or_default();
        let mut checks = vec![
            Check::new(
                "version",
                Ok(format!("{}, this program {}", server, service::VERSION.as_str())),
            ),
            Check::new("edge", Ok(format!("answers at {}", api.base()))),
        ];
        for (what, part, away) in [
            ("edge to nats", "nats", "the edge has no connection to NATS: is nats-server up?"),
            (
                "state",
                "state",
                "no state service answers: start `jobmesh serve state`, and read its log",
            ),
            (
                "processors",
                "processor",
                "no processor is there, so nothing runs: start `jobmesh serve processor`",
            ),
            (
                "metrics",
                "metrics",
                "metrics or ClickHouse does not answer; jobs go on. If the check `tasks` does not name ClickHouse \
                 (`jobmesh serve olap` in `dev`), start `jobmesh serve metrics`, and read its log",
            ),
        ] {
            let away = unknown(&ready, part).unwrap_or(away);
            let found =
                if ready[part] == true { Ok("answers".to_owned()) } else { Err(away.to_owned()) };
            checks.push(Check::new(what, found));
        }
        if let Some(spare) = ready["spareServers"].as_u64() {
            checks.push(Check::new("redundancy", Ok(redundancy(spare))));
        }
        checks.push(Check::new("broker's disk", storage(&ready["unstoredSubjects"])));
        if let Some(rejected) = ready["rejectedMessages"].as_u64() {
            checks.push(Check::new("messages", no_rejected(rejected)));
        }
        checks.extend(clock.map(|found| Check::new("clock", found)));
        let key = api.get("/api/projects", &[("limit", "1".to_owned())]).await;
        if let Err(error) = key
            && is_refused_with(&error, StatusCode::UNAUTHORIZED)
        {
            checks.push(Check::new("key", Err(format!("{error:#}"))));
            return Ok(checks);
        }
        for (what, found) in [("types", waiting(&api).await), ("tasks", tasks(&api).await)] {
            let found = found.unwrap_or_else(|error| {
                if is_refused_with(&error, StatusCode::FORBIDDEN) {
                    Ok("not checked: this needs an API key for all projects".to_owned())
                } else {
                    Err(format!("not checked: {error:#}"))
                }
            });
            checks.push(Check::new(what, found));
        }
        Ok(checks)
    }
}

/// Whether the edge refuses a request with this status.
fn is_refused_with(error: &anyhow::Error, expected: StatusCode) -> bool {
    matches!(error.downcast_ref(), Some(Refused::Answered { status, .. }) if *status == expected)
}

/// Whether each type of which jobs wait has a processor; an error if that cannot be read.
async fn waiting(api: &Api) -> anyhow::Result<Result<String, String>> {
    let processors = api.get("/api/processors", &[]).await?;
    let taken: Vec<String> = processors
        .field("processors")
        .items()
        .iter()
        .flat_map(|processor| processor.field("types").items())
        .filter_map(|job_type| job_type.as_string())
        .collect();
    for job_type in JobType::ALL.map(JobType::name).into_iter().filter(|it| !is_in(&taken, it)) {
        let query = [("status", "queued"), ("type", job_type), ("limit", "1")];
        let query = query.map(|(name, value)| (name, value.to_owned()));
        let queued = api.get("/api/queue/jobs", &query).await?;
        if !queued.field("jobs").items().is_empty() {
            return Ok(Err(format!(
                "jobs of type {job_type} wait, and no processor that is online takes that type: start one \
                 (JOBMESH_TYPES names the types of a processor)"
            )));
        }
    }
    Ok(Ok("each type of which jobs wait has a processor".to_owned()))
}

/// Whether the background tasks of all services succeeded when they were last tried; an error if that cannot be read.
async fn tasks(api: &Api) -> anyhow::Result<Result<String, String>> {
    let list = api.get("/api/tasks", &[]).await?.field("tasks");
    let text = |task: &Json, field: &str| task.field(field).as_string().unwrap_or_default();
    let failed: Vec<String> = list
        .items()
        .iter()
        .filter_map(|task| {
            let error = task.field("error").as_string()?;
            Some(format!("{} of {}: {error}", text(task, "task"), text(task, "instance")))
        })
        .collect();
    let services: Vec<String> = list.items().iter().map(|task| text(task, "service")).collect();
    let without_report =
        ["edge", "state", "metrics"].into_iter().filter(|it| !is_in(&services, it));
    let without_report: Vec<&str> = without_report.collect();
    let mut problems = Vec::new();
    if !failed.is_empty() {
        problems.push(format!("{}; read the logs of these services", failed.join("; ")));
    }
    if !without_report.is_empty() {
        problems.push(format!("no {} service reports its tasks", without_report.join(" and no ")));
    }
    Ok(if problems.is_empty() {
        Ok(format!("{} background tasks, none failed when it was last tried", services.len()))
    } else {
        Err(problems.join("; "))
    })
}

fn is_in(list: &[String], text: &str) -> bool {
    list.iter().any(|item| item == text)
}

/// Why the edge cannot know whether a part of the mesh is there, if that is so.
fn unknown(ready: &serde_json::Value, part: &str) -> Option<&'static str> {
    let unstored = ready["unstoredSubjects"].as_array();
    match part {
        "nats" => None,
        _ if ready["nats"] != true => Some("not known: the edge has no connection to NATS"),
        _ if unstored.is_some_and(|subjects| !subjects.is_empty()) => {
            Some("not known: NATS does not confirm messages, see below")
        }
        "processor" if ready["state"] != true => Some("not known: no state service answers"),
        _ => None,
    }
}

/// What the loss of NATS servers would do.
fn redundancy(spare: u64) -> String {
    match spare {
        0 => "without its NATS server jobs wait until it is back, and none is lost".to_owned(),
        1 => "one NATS server may stop, and jobs continue".to_owned(),
        spare => format!("{spare} NATS servers may stop, and jobs continue"),
    }
}

/// Whether the broker stores what it is sent.
fn storage(unstored: &serde_json::Value) -> Result<String, String> {
    let subjects = unstored.as_array().into_iter().flatten();
    let subjects: Vec<&str> = subjects.filter_map(serde_json::Value::as_str).collect();
    if subjects.is_empty() {
        return Ok("no message was left unstored".to_owned());
    }
    Err(format!(
        "NATS does not confirm messages to {}: too few of its servers run, or a disk is full or failing. Start the \
         servers; after a full disk, free space and restart nats-server, which does not recover by itself. Nothing \
         accepted is lost",
        subjects.join(", ")
    ))
}

/// Whether every message could be processed.
fn no_rejected(rejected: u64) -> Result<String, String> {
    if rejected == 0 {
        return Ok("all could be processed".to_owned());
    }
    let stream = names::REJECTED;
    Err(format!(
        "{rejected} could not be processed and are set aside: the log of state has the reasons. \
         `nats stream view {stream}` (the program of NATS) shows them, `nats stream purge {stream}` removes them"
    ))
}

/// How far this machine's clock is off an HTTP date.
fn clock(date: &str) -> Result<String, String> {
    let parsed = httpdate::parse_http_date(date).map_err(|_| format!("{date:?} is no date"))?;
    let there = parsed.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let off = service::now_ms() / 1_000 - i64::try_from(there).unwrap_or(0);
    if off.abs() <= SKEW_S_MAX {
        return Ok("agrees with the edge's".to_owned());
    }
    Err(format!("this machine's is {off} s off the edge's: let NTP set both"))
}

/// The broker's version, its streams and its buckets.
async fn nats(access: &Access) -> Vec<Check> {
    let connecting = tokio::time::timeout(WITHIN, Broker::connect_with(access, "jobmesh-doctor"));
    let broker = match connecting.await {
        Ok(Ok(broker)) => broker,
        Ok(Err(error)) => {
            let why = std::error::Error::source(&error).map(|source| format!(": {source}"));
            let says = format!("{error}{}", why.unwrap_or_default());
            return vec![Check::new("nats", Err(says))];
        }
        Err(_) => {
            return vec![Check::new("nats", Err(format!("{access} does not answer in time")))];
        }
    };
    let version = broker.client.server_info().version;
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = NATS_MIN;
    let new_enough = if found >= NATS_MIN {
        Ok(format!("nats-server {version}"))
    } else {
        Err(format!("nats-server is {version}; Jobmesh needs {major}.{minor} or newer"))
    };
    let mut checks = vec![Check::new("nats", new_enough)];
    let streams = topology::check_all(&broker, Sizes::default()).await;
    let streams = streams.map(|()| "all are there, as they must be".to_owned());
    checks.push(Check::new("streams", streams.map_err(|error| error.to_string())));
    if broker.is_in_cluster() {
        checks.push(Check::new("cluster", match broker.spare_servers().await {
            None => Err("its streams could not be read".to_owned()),
            Some(0) => Err("the loss of one more server would stop the mesh: bring back the servers that are away, and \
                            let JOBMESH_REPLICAS of state be 3 or unset"
                .to_owned()),
            Some(spare) => Ok(redundancy(spare as u64)),
        }));
    }
    for (what, stream) in
        [("commands", names::COMMANDS), ("events", names::EVENTS), ("bucket", names::JOBS_STREAM)]
    {
        let fill = broker.fill(stream).await;
        checks.push(Check::new(what, match fill {
            None => Err("could not be read".to_owned()),
            Some(fill) if fill > 0.7 => Err(format!(
                "{:.0} % full: make it larger (`nats stream edit {stream}`), or shorten retention",
                fill * 100.0
            )),
            Some(fill) => Ok(format!("{:.0} % full", fill * 100.0)),
        }));
    }
    checks
}

/// ClickHouse's version.
async fn clickhouse(url: &str) -> Result<String, String> {
    let away = |error: reqwest::Error| format!("{url} does not answer: {}", error.without_url());
    let http = outbound::builder().timeout(WITHIN).build().map_err(away)?;
    let answer = http.post(url).body("SELECT version()").send().await.map_err(away)?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    if status.is_success() {
        return Ok(format!("ClickHouse {}", text.trim()));
    }
    Err(format!("answered {status}: {}", text.lines().next().unwrap_or_default()))
}
