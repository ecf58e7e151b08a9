//! The state service: the only writer of EVENTS and of the bucket `jobs`.
//!
//! One replica leads. It receives commands, decides them, appends the events, and only then lets
//! the effects follow: replies, bucket writes, dispatch, hints, live events. A crash between any two
//! of these is repaired by starting over, because every effect is repeatable. The other replicas
//! follow EVENTS, answer questions, and wait for the lease.

mod clock;
mod config;
mod election;
mod follower;
mod leader;
mod measurements;
mod query;
mod replica;
mod spill;
mod takeover;

pub use config::Config;
pub use replica::run;
