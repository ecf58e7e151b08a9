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
