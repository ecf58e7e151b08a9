//! Following jobs to their end, by server-sent events that are resumed where they broke off.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    api::{Api, Refused},
    json::Json,
    show,
};

/// The jobs that did not complete, as far as they are shown.
const FAILURES_SHOWN_MAX: usize = 20;
/// How long to wait before a broken stream is resumed.
const PAUSE: Duration = Duration::from_millis(500);
/// How long no edge may answer before the watch ends.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// How long a stream may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// The exit status of a watch whose jobs did not all complete.
const NOT_WELL: u8 = 5;

/// The jobs to follow, and their statuses.
pub(super) struct Followed {
    jobs: HashMap<String, String>,
    query: Vec<(&'static str, String)>,
}

impl Followed {
    /// These jobs, of this project if it is known.
    pub fn jobs(jobs: Vec<String>, project: Option<String>) -> Self {
        let mut query: Vec<_> = project.into_iter().map(|project| ("projectId", project)).collect();
        if let [one] = &jobs[..] {
            query.push(("jobId", one.clone()));
        }
        Self { jobs: jobs.into_iter().map(|job| (job, String::new())).collect(), query }
    }

    /// This job. Its project is read: some API keys need it.
    pub async fn job(api: &Api, job: String) -> anyhow::Result<Self> {
        let answer = api.get(&format!("/api/queue/status/{job}"), &[]).await?;
        let project = answer.field("job").field("projectId").as_string();
        Ok(Self::jobs(vec![job], project))
    }

    /// The active jobs of a batch, or its last terminal one.
    pub async fn batch(api: &Api, project: String, batch: String) -> anyhow::Result<Self> {
        let path = ["api", "queue", "batches", &batch];
        let answer = api.get_in(&path, &[("projectId", &project)]).await?;
        let mut found = Vec::new();
        for job in answer.field("batch").field("jobs").items() {
            let id = job.field("id").as_string().context("a job has no id")?;
            let status = job.field("status").as_string().unwrap_or_default();
            if is_end(&status) && !found.is_empty() {
                break;
            }
            found.push(id);
        }
        let query = vec![("projectId", project), ("batchId", batch)];
        Ok(Self { query, ..Self::jobs(found, None) })
    }

    fn count(&self, status: &str) -> usize {
        self.jobs.values().filter(|is| *is == status).count()
    }

    fn ended(&self) -> usize {
        self.jobs.values().filter(|status| is_end(status)).count()
    }

    fn all_ended(&self) -> bool {
        self.ended() == self.jobs.len()
    }
}

fn is_end(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "canceled")
}

/// Follows jobs until each is terminal.
pub(super) async fn to_the_end(
    api: &Api,
    mut followed: Followed,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let bar = bar(followed.jobs.len(), json);
    let mut last: Option<String> = None;
    let mut away_since = None;
    while !followed.all_ended() {
        match follow(api, &mut followed, &mut last, &mut away_since, json, &bar).await {
            Ok(()) => {}
            Err(error)
                if error.downcast_ref::<Refused>().is_some_and(|it| it.exit_status() == 3) =>
            {
                return Err(error);
            }
            Err(error) => {
                let since = *away_since.get_or_insert_with(std::time::Instant::now);
                if since.elapsed() > AWAY_MAX {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    bar.finish();
    let well = followed.count("completed") == followed.jobs.len();
    if !json {
        show_failures(api, &followed).await?;
        show::print(&format!(
            "{} completed, {} failed, {} canceled",
            followed.count("completed"),
            followed.count("failed"),
            followed.count("canceled")
        ))?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

/// Follows until all jobs are terminal or the stream breaks off.
async fn follow(
    api: &Api,
    followed: &mut Followed,
    last: &mut Option<String>,
    away_since: &mut Option<std::time::Instant>,
    json: bool,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let mut stream = api.events(&followed.query, last.as_deref()).await?;
    *away_since = None;
    if last.is_none() {
        // The stream is open: later events arrive on it, earlier changes are read.
        look(api, followed, json).await?;
        draw(followed, bar);
    }
    let mut rest = Vec::new();
    while !followed.all_ended() {
        // An idle stream sends a comment every 15 s.
        let chunk = tokio::time::timeout(SILENCE_MAX, stream.chunk()).await;
        let Some(chunk) = chunk.context("the edge has gone silent")?? else { return Ok(()) };
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = rest.drain(..end + 2).collect();
            let event = String::from_utf8(event).context("events are UTF-8")?;
            let field = |name: &str| {
                event
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(|text| text.trim().to_owned())
            };
            if let Some(id) = field("id:") {
                *last = Some(id);
            }
            match (field("event:").as_deref(), field("data:")) {
                // Something was missed: look at all again.
                (Some("gap" | "lagged"), _) => *last = None,
                (Some(_), Some(data)) => {
                    let data = Json::parse(&data).context("an event is not JSON")?;
                    note(followed, &data.field("jobId"), &data, json)?;
                }
                _ => {}
            }
        }
        draw(followed, bar);
        if last.is_none() {
            return Ok(());
        }
    }
    Ok(())
}

/// Shows which jobs did not complete, and why.
async fn show_failures(api: &Api, followed: &Followed) -> anyhow::Result<()> {
    let failed = followed.jobs.iter().filter(|(_, status)| *status != "completed");
    for (job, status) in failed.take(FAILURES_SHOWN_MAX) {
        let answer = api.get(&format!("/api/queue/status/{job}"), &[]).await?;
        let error = answer.field("job").field("error").as_string().unwrap_or_default();
        show::print(&format!("{job} {status}: {error}"))?;
    }
    Ok(())
}

/// Reads the status of each job.
async fn look(api: &Api, followed: &mut Followed, json: bool) -> anyhow::Result<()> {
    let jobs: Vec<String> = followed.jobs.keys().cloned().collect();
    for job in jobs {
        let answer = api.get(&format!("/api/queue/status/{job}"), &[]).await?;
        let job = answer.field("job");
        note(followed, &job.field("id"), &job, json)?;
    }
    Ok(())
}

fn note(followed: &mut Followed, id: &Json, job: &Json, json: bool) -> anyhow::Result<()> {
    let status = job.field("status").as_string();
    let (Some(id), Some(status)) = (id.as_string(), status) else { return Ok(()) };
    let Some(known) = followed.jobs.get_mut(&id) else { return Ok(()) };
    if json && *known != status {
        let error = job.field("error").as_string();
        let line = serde_json::json!({ "jobId": id, "status": status, "error": error });
        show::print(&line.to_string())?;
    }
    *known = status;
    Ok(())
}

fn bar(jobs: usize, json: bool) -> ProgressBar {
    if json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(jobs as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn draw(followed: &Followed, bar: &ProgressBar) {
    bar.set_position(followed.ended() as u64);
    let (running, failed) = (followed.count("processing"), followed.count("failed"));
    bar.set_message(format!("{running} running, {failed} failed"));
}
