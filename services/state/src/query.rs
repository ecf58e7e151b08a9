//! Questions to a state service, leading or not.

mod handlers;
mod server;

pub(crate) use handlers::QueryContext;
pub(crate) use server::{Incoming, QueryServer};
