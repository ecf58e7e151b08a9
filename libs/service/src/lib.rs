//! What every process of Jobmesh does in the same way: find the broker, log, retry, and stop when
//! asked to.

mod broker;
mod clock;
mod health;
pub mod prometheus;
mod retry;
pub mod secret;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
mod version;

pub use broker::{Identity, Nats, NatsLogin, NatsUrl};
pub use clock::now_ms;
pub use health::{Health, Part, Readiness};
pub use retry::{Failures, retry_until};
pub use tasks::BackgroundTask;
pub use version::VERSION;

/// A name for this process alone: what it is, and eight digits that no other has.
pub fn instance(identity: Identity) -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    format!("{}-{}", identity.name(), &id[id.len() - 8..])
}
