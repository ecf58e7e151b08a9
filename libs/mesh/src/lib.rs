#![doc = include_str!("../README.md")]

pub mod access;
pub mod append;
pub mod ask;
pub mod broker;
pub mod bucket;
pub mod commit;
pub mod lease;
pub mod names;
pub mod presence;
pub mod publish;
pub mod pull;
pub mod rejected;
pub mod results;
pub mod snapshot;
pub mod storage;
pub mod stream_reader;
mod token;
pub mod topology;
pub mod totals;
pub mod wire;
pub mod work;

pub use broker::Broker;
pub use token::SubjectToken;
