//! Measurements for Prometheus: what services serve, checked with promtool, and the rules that use them.

use std::{
    collections::BTreeSet,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::mesh::{Mesh, until};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
/// Jobs that are run.
const JOBS: usize = 20;

/// The measurements of each service.
async fn scrape(mesh: &Mesh) -> anyhow::Result<Vec<String>> {
    let targets = std::fs::read(mesh.data_dir().join("prometheus-targets.json"))?;
    let targets: Value = serde_json::from_slice(&targets)?;
    let mut scraped = Vec::new();
    for target in targets.as_array().into_iter().flatten() {
        let address = target["targets"][0].as_str().unwrap_or_default();
        let answer = reqwest::get(format!("http://{address}/metrics")).await?;
        scraped.push(answer.error_for_status()?.text().await?);
    }
    Ok(scraped)
}

/// The sum of the samples whose lines begin so.
fn sum(scraped: &[String], starts: &str) -> f64 {
    let lines = scraped.iter().flat_map(|text| text.lines());
    let samples = lines.filter(|line| line.starts_with(starts));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn promtool(arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(Path::new(DEPLOY).join("prometheus"));
    let mut child =
        promtool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    anyhow::ensure!(output.status.success(), "promtool {arguments:?}: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn measurements_are_those_of_the_jobs_and_well_formed() -> anyhow::Result<()> {
    let handlers = [("JOBMESH_HANDLERS", "process_batch=noop,process_redo=noop")];
    let mesh = Mesh::start_with_arguments(&["--metrics"], &handlers)?;
    mesh.enqueue("p", JOBS).await?;
    mesh.set("paused", json!({ "paused": true })).await?;
    mesh.enqueue("paused", 3).await?;
    let mut scraped = Vec::new();
    until("measured", async || {
        scraped = scrape(&mesh).await?;
        let expected = [
            ("jobmesh_state_leading", 1.0),
            ("jobmesh_jobs{service=\"state\",status=\"queued\",class=\"normal\"}", 3.0),
            ("jobmesh_ended_jobs{service=\"state\",status=\"completed\"}", JOBS as f64),
            ("jobmesh_dispatched_runs_total", JOBS as f64),
            ("jobmesh_runs_total{", JOBS as f64),
            ("jobmesh_run_seconds_count", JOBS as f64),
            ("jobmesh_run_wait_seconds_count", JOBS as f64),
            ("jobmesh_ingested_rows_total", JOBS as f64),
            ("jobmesh_ingest_lag_events", 0.0),
            ("jobmesh_slots", 8.0),
            // Each service is connected, the processor of webhooks among them.
            ("jobmesh_nats_connected", scraped.len() as f64),
        ];
        let wrong = expected.iter().find(|(name, value)| sum(&scraped, name) != *value);
        let is_counted = sum(&scraped, "jobmesh_http_requests_total{") >= 4.0;
        Ok(match wrong {
            None if is_counted => Ok(()),
            None => Err("requests".to_owned()),
            Some((name, value)) => Err(format!("{name} is {}, not {value}", sum(&scraped, name))),
        })
    })
    .await?;
    for text in &scraped {
        promtool(&["check", "metrics"], text)?;
        assert!(!text.contains("batch-"), "no label has an id: {text}");
    }
    // What rules and dashboard use is there.
    let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut used = BTreeSet::new();
    for file in ["prometheus/alerts.yml", "grafana/jobmesh.json"] {
        let text = std::fs::read_to_string(Path::new(DEPLOY).join(file))?;
        for rest in text.split("jobmesh_").skip(1) {
            let name: String = rest.chars().take_while(|c| is_of_name(*c)).collect();
            used.insert(format!("jobmesh_{name}"));
        }
    }
    assert!(used.len() > 15, "{used:?}");
    for name in used {
        let is_there = scraped.iter().any(|text| text.lines().any(|line| line.starts_with(&name)));
        assert!(is_there, "{name} is used, and no service has it");
    }
    Ok(())
}

#[test]
fn alert_rules_fire_when_they_should() -> anyhow::Result<()> {
    promtool(&["check", "rules", "alerts.yml"], "")?;
    promtool(&["check", "config", "--syntax-only", "prometheus.yml"], "")?;
    promtool(&["test", "rules", "alerts_test.yml"], "")
}
