#![doc = include_str!("../README.md")]

mod about;
mod answers;
mod attempt;
mod class;
pub mod command;
mod config;
mod counts;
mod decide;
mod dispatch;
pub mod event;
mod fold;
mod identity;
mod job;
mod json;
mod minute;
mod position;
mod queue;
mod recent;
pub mod reply;
mod settings;
pub mod time;

pub use about::About;
pub use answers::{Answer, Digest, Idempotency};
pub use attempt::{Backoff, Take};
pub use class::{Bands, Class};
pub use config::Config;
pub use counts::Counts;
pub use decide::{Decision, Facts, Need};
pub use dispatch::{Capacity, Dispatch};
pub use fold::{Queued, Restored, State, Usage};
pub use identity::{Id, JobId, Run};
pub use job::{Job, Kind, Spent, Status, Step};
pub use json::Json;
pub use position::Position;
pub use queue::{Gate, Open, Ready};
pub use settings::{Limits, Patch, Settings};
