#![doc = include_str!("../README.md")]

pub mod access;
pub mod analytics;
pub mod api_keys;
pub mod append;
pub mod archive;
pub mod audit;
pub mod broker;
pub mod bucket;
pub mod checkpoint;
pub mod command_publisher;
pub mod consumer;
pub mod failure_marks;
pub mod heartbeat;
mod last_messages;
pub mod lease;
pub mod names;
pub mod presence;
pub mod publish;
pub mod query;
mod redundancy;
pub mod rejected;
pub mod results;
pub mod run_tokens;
mod servers;
pub mod snapshot;
pub mod storage;
pub mod stream_reader;
pub mod tasks;
mod token;
pub mod topology;
pub mod wire;
pub mod work_queue;

pub use broker::Broker;
pub use token::SubjectToken;
