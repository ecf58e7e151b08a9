//! The handlers that come with Jobmesh.

mod http;
mod tokenize;

pub use http::Http;
pub use tokenize::Tokenize;
