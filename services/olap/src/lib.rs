//! ClickHouse's HTTP interface over chDB, the ClickHouse engine as a library.
//!
//! It is there for machines without a ClickHouse server: `metrics` speaks to it with the same
//! client and the same SQL as to a real one, and so can `curl`. Two connections, because each
//! runs one statement at a time: one writes, one reads.

mod access;
mod config;
mod engine;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
mod library;
mod statement;

pub use config::Config;
pub use http::run;
