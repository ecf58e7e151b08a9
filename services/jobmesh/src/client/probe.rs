//! `probe`: whether a service answers a probe, for health checks of containers that have no other HTTP client.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;

/// How long the service may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Asks once. The status to exit with is 0 for an answer of 2xx.
pub(super) async fn probe(url: &str) -> anyhow::Result<ExitCode> {
    let with_scheme = url.starts_with("http://") || url.starts_with("https://");
    anyhow::ensure!(with_scheme, "{url} is no URL: it must start with http:// or https://");
    let client = outbound::builder().no_proxy().timeout(WITHIN).build()?;
    let answer = client.get(url).send().await.with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    println!("{} {}", status.as_u16(), answer.text().await.unwrap_or_default());
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
