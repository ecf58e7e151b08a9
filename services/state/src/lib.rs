//! The state service: the only writer of EVENTS and of the bucket of jobs.
//!
//! One of any number leads. The leader takes commands, folds them, appends the events, and only
//! then lets effects follow: replies, bucket writes, dispatch, hints, live events. A crash
//! between any two of these is repaired by starting over, because every effect is repeatable.
//! The others follow the events, answer questions, and stand by for the lease.

mod clock;
mod command_processor;
mod config;
mod dispatcher;
mod election;
mod event_batch;
mod follower;
mod leader;
mod projection;
mod queries;
mod reconciler;
mod snapshotter;
mod spill;
mod takeover;

pub use config::Config;
pub use election::run;
