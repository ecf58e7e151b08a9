//! `http`: posts the job to a URL of the operator's, and reads outcome and cost from the answer.
//!
//! 2xx is done; 408, 425, 429 and 5xx are tried again (`Retry-After` in seconds is respected);
//! any other status is a failure for good. The body of a 2xx may say what came of it:
//! `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m"}`.

use std::sync::Arc;

use mesh::wire::Work;

use super::{
    answer::{self, Answer},
    client,
};
use crate::handler::{Context, Handler, Outcome};

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Posts jobs.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    url: reqwest::Url,
}

impl Http {
    /// Posts to `url`.
    ///
    /// # Errors
    /// Where the URL is none of `http` or `https`, or the machine's certificates cannot be read.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self { url: client::url(url)?, client: client::client()? })
    }
}

impl Handler for Http {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let request = self.client.post(self.url.clone()).json(&*work);
        let request = request.header("Jobmesh-Job-Id", work.job.to_string());
        let answer = match client::answer(request, ANSWER_BYTES_MAX + 1).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::retry(client::could_not_ask(&self.url, error)),
        };
        if answer.body.len() > ANSWER_BYTES_MAX {
            return Outcome::reject(format!("the answer is larger than {ANSWER_BYTES_MAX} bytes"));
        }
        if !answer.status.is_success() {
            return answer.failed();
        }
        match answer::read(&answer.body) {
            Ok(Answer { result, spent }) => Outcome::Done { result, spent },
            Err(why) => Outcome::reject(why),
        }
    }
}
