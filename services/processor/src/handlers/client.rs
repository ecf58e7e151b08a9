//! Asking servers over HTTP: within bounds, and without telling more than is anybody's business.

use std::time::Duration;

use anyhow::Context as _;
use job::Usage;
use reqwest::{RequestBuilder, StatusCode, Url};

use super::{answer, later::later};
use crate::handler::Outcome;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a failed answer's body an error shows, in bytes.
const ERROR_BODY_BYTES_MAX: usize = 512;

/// An answer, read to its end.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    /// How long the server asks to wait.
    pub later: Option<Duration>,
}

/// A URL that jobs may be sent to.
///
/// # Errors
/// If it is not an `http` or `https` URL. The text is not part of the error: it may hold a password.
pub(super) fn url(text: &str) -> anyhow::Result<Url> {
    let url: Url = text.parse().context("the URL cannot be parsed")?;
    anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "the URL is not http or https");
    Ok(url)
}

/// A client that follows no redirects.
///
/// # Errors
/// If the machine's certificates cannot be read.
pub(super) fn client() -> anyhow::Result<reqwest::Client> {
    Ok(builder().build()?)
}

/// The settings of all clients.
pub(super) fn builder() -> reqwest::ClientBuilder {
    outbound::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("jobmesh/", env!("CARGO_PKG_VERSION")))
}

/// Sends a request and reads the answer, of which a part beyond `bytes_max` is left out.
pub(super) async fn answer(
    request: RequestBuilder,
    bytes_max: usize,
) -> Result<Answer, reqwest::Error> {
    let mut response = request.send().await?;
    let status = response.status();
    let later = later(status, response.headers(), service::now_ms());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = bytes_max.saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if room < chunk.len() {
            break;
        }
    }
    Ok(Answer { status, body, later })
}

/// Whether a status asks to come back later: 503 only if the answer also says when.
pub(super) fn is_later(status: StatusCode, later: Option<Duration>) -> bool {
    match status.as_u16() {
        408 | 425 | 429 | 529 => true,
        503 => later.is_some(),
        _ => false,
    }
}

impl Answer {
    /// The outcome of a failed answer, with its usage if it contains one.
    pub fn failed(self) -> Outcome {
        let (error, after) = (self.error(), self.later);
        let usage = answer::read(&self.body).map_or(Usage::default(), |answer| answer.usage);
        if is_later(self.status, after) {
            Outcome::Defer { error, after, usage }
        } else if self.status.is_server_error() {
            Outcome::Retry { error, after, usage }
        } else {
            Outcome::Reject { error, usage }
        }
    }

    fn error(&self) -> String {
        let body = &self.body[..self.body.len().min(ERROR_BODY_BYTES_MAX)];
        let body = String::from_utf8_lossy(body);
        // It is shown in terminals and on pages.
        let body: String = body.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match body.trim() {
            "" => format!("answered {}", self.status),
            body => format!("answered {}: {body}", self.status),
        }
    }
}

/// The error of a server that could not be reached, without the secrets that its URL may hold: a
/// user, a password, a query.
pub(super) fn could_not_ask(url: &Url, error: reqwest::Error) -> String {
    let host = url.host_str().unwrap_or_default();
    let error = error.without_url();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let place = format!("{}://{host}{port}{}", url.scheme(), url.path());
    let mut text = format!("{place} could not be asked: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
