//! Test only: servers that belong to one test, on free ports and in folders of their own, and
//! the means to hurt them.

mod cluster;
mod nats;
mod network;
mod proxy;

pub use cluster::{Cluster, DrainEnd};
pub use nats::Nats;
pub use network::{Network, command};
pub use proxy::Proxy;
