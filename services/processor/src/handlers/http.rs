//! `http`: posts the job to a URL of the operator's, and reads outcome and cost from the answer.
//!
//! 2xx is done. 408, 425, 429 and 529, and 503 with a `Retry-After`, ask to come back later, which uses
//! no attempt; other 5xx are tried again; any other status is a failure for good. The body of a 2xx may
//! say what came of it:
//! `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m"}`.

use std::sync::Arc;

use nats::wire::Work;

use super::{answer, client};
use crate::handler::{Context, Handler, Outcome};

/// How much larger than the largest result an answer may be, in bytes: what is around it.
const ANSWER_MARGIN_BYTES: usize = 64 * 1024;

/// Posts jobs.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    url: reqwest::Url,
    answer_bytes_max: usize,
}

impl Http {
    /// Posts to `url`; results have at most `result_bytes_max` bytes.
    ///
    /// # Errors
    /// If the URL is none of `http` or `https`, or the machine's certificates cannot be read.
    pub fn new(url: &str, result_bytes_max: usize) -> anyhow::Result<Self> {
        let answer_bytes_max = result_bytes_max + ANSWER_MARGIN_BYTES;
        Ok(Self { url: client::url(url)?, client: client::client()?, answer_bytes_max })
    }
}

impl Handler for Http {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let request = self.client.post(self.url.clone()).json(&work.without_token());
        let mut request = request.header("Jobmesh-Job-Id", work.job.to_string());
        if let Some(trace) = work.traceparent {
            request = request.header("traceparent", trace.to_string());
        }
        let answer = match client::answer(request, self.answer_bytes_max + 1).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::retry(client::could_not_ask(&self.url, error)),
        };
        if answer.body.len() > self.answer_bytes_max {
            let most = self.answer_bytes_max;
            return Outcome::reject(format!("the answer is larger than {most} bytes"));
        }
        if !answer.status.is_success() {
            return answer.failed();
        }
        // A body that is not a JSON object has no fields: the work is done anyway.
        let answer = answer::read(&answer.body).unwrap_or_default();
        Outcome::Done { result: answer.result, usage: answer.usage }
    }
}
