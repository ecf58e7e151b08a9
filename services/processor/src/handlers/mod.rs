//! The handlers that come with Jobmesh.

mod http;
mod noop;
mod tokenize;

pub use http::Http;
pub use noop::Noop;
pub use tokenize::Tokenize;
