//! `http`: posts the job to a URL of the operator's, and reads outcome and cost from the answer.
//!
//! 2xx is done; 408, 425, 429 and 5xx are tried again (`Retry-After` in seconds is respected);
//! any other status is a failure for good. The body of a 2xx may say what came of it:
//! `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m"}`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use job::{Json, Spent};
use mesh::wire::Work;
use reqwest::{StatusCode, header::RETRY_AFTER};
use serde::Deserialize;

use crate::handler::{Context, Handler, Outcome};

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How much of a failed answer's body an error shows, in bytes.
const ERROR_BODY_BYTES_MAX: usize = 512;
/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that is respected.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Posts jobs.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    url: reqwest::Url,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    result: Option<Json>,
    tokens: Tokens,
    images: u64,
    model: Option<job::Id>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tokens {
    input: u64,
    output: u64,
}

impl Http {
    /// Posts to `url`.
    ///
    /// # Errors
    /// Where the URL is none of `http` or `https`, or the machine's certificates cannot be read.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let url: reqwest::Url = url.parse().with_context(|| format!("{url:?} is no URL"))?;
        anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "{url} is not http or https");
        // Another part of the process may have chosen first: then that choice holds.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("jobmesh/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, url })
    }

    async fn post(&self, work: &Work) -> Result<Outcome, reqwest::Error> {
        let request = self.client.post(self.url.clone()).json(work);
        let mut response = request.header("Jobmesh-Job-Id", work.job.to_string()).send().await?;
        let status = response.status();
        let after = retry_after(&response);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Ok(Outcome::reject(format!(
                    "the answer is larger than {ANSWER_BYTES_MAX} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(if status.is_success() { done(&body) } else { failed(status, after, &body) })
    }
}

impl Handler for Http {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        match self.post(&work).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::retry(format!("{} could not be asked: {error}", self.url)),
        }
    }
}

fn done(body: &[u8]) -> Outcome {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Outcome::Done { result: None, spent: Spent::default() };
    }
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => {
            return Outcome::reject(format!("the answer is not what is expected: {error}"));
        }
    };
    let spent = Spent {
        input_tokens: answer.tokens.input,
        output_tokens: answer.tokens.output,
        images: answer.images,
        model: answer.model,
    };
    Outcome::Done { result: answer.result, spent }
}

fn failed(status: StatusCode, after: Option<Duration>, body: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(&body[..body.len().min(ERROR_BODY_BYTES_MAX)]);
    let error = format!("answered {status}: {}", text.trim());
    let passes = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
    if passes {
        Outcome::Retry { error, after, spent: Spent::default() }
    } else {
        Outcome::reject(error)
    }
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
