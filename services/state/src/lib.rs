//! The state service: the only writer of EVENTS and of the bucket of jobs.
//!
//! One of any number leads. The leader takes commands, folds them, appends the events, and only
//! then lets effects follow: replies, bucket writes, dispatch, hints, live events. A crash
//! between any two of these is repaired by starting over, because every effect is repeatable.
//! The others follow the events, answer questions, and stand by for the lease.

mod attic;
mod clock;
mod config;
mod desk;
mod dispatch;
mod fold;
mod lead;
mod leader;
mod pack;
mod project;
mod reconcile;
mod retain;
mod standby;
mod start;

pub use config::Config;
pub use lead::run;
