//! Finds or fetches the two things that Jobmesh runs beside itself: nats-server, and libchdb.
//!
//! Both come through the machine's own package clients, from the registries that these are set up
//! for, into a cache folder. Nothing is installed, and root is not needed. Debian's signature is
//! verified by apt, and libchdb's checksum here. `dev` and the tests use the same code.

mod cache;
mod chdb;
mod command;
mod nats;
mod port;
mod progress;

pub use chdb::{CHDB_VERSION, libchdb};
pub use nats::nats_server;
pub use port::{free_port, free_port_in};
