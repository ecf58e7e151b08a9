//! The handlers that come with Jobmesh.

mod answer;
mod client;
mod command;
mod http;
mod later;
mod llm;
mod noop;
mod public;
mod tokenize;
mod webhook;

pub use command::Command;
pub use http::Http;
pub use llm::{Endpoint, Llm};
pub use noop::Noop;
pub use tokenize::Tokenize;
pub use webhook::Webhook;

/// Reads what a server answered, for fuzz/.
#[cfg(fuzzing)]
pub(crate) fn try_read(data: &[u8]) {
    let _ = answer::read(data);
    llm::try_read(data);
    if let Ok(value) = reqwest::header::HeaderValue::from_bytes(data) {
        let headers = [(reqwest::header::RETRY_AFTER, value)].into_iter().collect();
        let _ = later::later(reqwest::StatusCode::TOO_MANY_REQUESTS, &headers, 0);
    }
}
