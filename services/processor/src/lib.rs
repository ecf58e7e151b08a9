//! The processor: takes ready work, runs its handler, records how it ended, acks.
//!
//! Everything but the handlers is here for others to build on: implement [`Handler`], put it
//! into a [`Registry`] under the kinds of work it takes, and [`run`] it.

mod claim;
mod config;
mod handler;
pub mod handlers;
mod hands;
mod lanes;
mod registry;
mod runner;
mod running;

pub use config::Config;
pub use handler::{Context, Handler, Outcome};
pub use mesh::wire::Work;
pub use registry::Registry;
pub use runner::run;
