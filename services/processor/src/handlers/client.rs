//! Asking servers over HTTP: within bounds, and without telling more than is anybody's business.

use std::time::Duration;

use anyhow::Context as _;
use job::Spent;
use reqwest::{RequestBuilder, StatusCode, Url, header::RETRY_AFTER};

use crate::handler::Outcome;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a failed answer's body an error shows, in bytes.
const ERROR_BODY_BYTES_MAX: usize = 512;
/// The longest `Retry-After` that is respected.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3_600);

/// An answer, read to its end.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    after: Option<Duration>,
}

/// A URL that jobs may be sent to.
///
/// # Errors
/// Where it is none of `http` or `https`.
pub(super) fn url(text: &str) -> anyhow::Result<Url> {
    let url: Url = text.parse().with_context(|| format!("{text:?} is no URL"))?;
    anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "{url} is not http or https");
    Ok(url)
}

/// A client that follows no redirects.
///
/// # Errors
/// Where the machine's certificates cannot be read.
pub(super) fn client() -> anyhow::Result<reqwest::Client> {
    Ok(builder().build()?)
}

/// The settings of all clients.
pub(super) fn builder() -> reqwest::ClientBuilder {
    // Another part of the process may have chosen first: then that choice holds.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
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
    let (status, after) = (response.status(), retry_after(&response));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = bytes_max.saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if room < chunk.len() {
            break;
        }
    }
    Ok(Answer { status, body, after })
}

impl Answer {
    /// What a failed answer means: 408, 425, 429 and 5xx pass, no sooner than `Retry-After` says;
    /// any other status does not.
    pub fn failed(self) -> Outcome {
        let passes = self.status.is_server_error()
            || matches!(
                self.status,
                StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
            );
        if passes {
            Outcome::Retry { error: self.error(), after: self.after, spent: Spent::default() }
        } else {
            Outcome::reject(self.error())
        }
    }

    fn error(&self) -> String {
        let body = &self.body[..self.body.len().min(ERROR_BODY_BYTES_MAX)];
        let body = String::from_utf8_lossy(body);
        match body.trim() {
            "" => format!("answered {}", self.status),
            body => format!("answered {}: {body}", self.status),
        }
    }
}

/// That a server could not be asked, without what its URL may hold that is nobody's business: a
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

/// The `Retry-After` of an answer, where it names seconds, within what is respected.
pub(super) fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
