//! Why the streams cannot be used.

use super::WIRE_VERSION;

/// The topology could not be ensured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream or bucket could not be read or made.
    #[error("{name} could not be ensured: {why}")]
    Broker {
        /// Its name.
        name: String,
        /// The answer of the broker.
        why: String,
    },
    /// A stream is not there. State makes the streams.
    #[error("there is no stream {stream}: the state service makes it")]
    Absent {
        /// The stream.
        stream: String,
    },
    /// The broker takes no messages as large as ours.
    #[error(
        "the broker takes messages of at most {found} bytes; Jobmesh needs {wanted}: \
         set max_payload in its configuration, see deploy/nats/jobmesh.conf"
    )]
    Payload {
        /// What it takes.
        found: usize,
        /// What is needed.
        wanted: usize,
    },
    /// The streams hold messages of another wire version.
    #[error(
        "stream {stream} has wire version {found}, and this program writes version {WIRE_VERSION}: run one version of \
         Jobmesh in all services, or use a NATS account of its own"
    )]
    WireVersion {
        /// The stream.
        stream: String,
        /// Its version.
        found: String,
    },
    /// There are too few servers for the copies of a stream.
    #[error(
        "stream {stream} cannot be kept on {replicas} servers: {why}; start that many NATS servers in the cluster, or \
         set JOBMESH_REPLICAS"
    )]
    Replicas {
        /// The stream.
        stream: String,
        /// The number of copies.
        replicas: usize,
        /// The answer of the broker.
        why: String,
    },
    /// A restore is in progress, or was interrupted.
    #[error(
        "a restore into this NATS account has not completed: wait for it; if it was interrupted, empty NATS and \
         ClickHouse and restore again, see \"Backup and restore\" in docs/operations.md"
    )]
    Restoring,
    /// A stream of a single server, which acks before it syncs, must be replicated.
    #[error(
        "stream {stream} was made for a single server, and NATS keeps no copies of such a stream: delete it with `nats \
         stream rm {stream}`. State makes it again, and dispatches what was in it"
    )]
    Async {
        /// The stream.
        stream: String,
    },
    /// A stream is there with settings that lose or repeat work.
    #[error(
        "stream {stream} has {found}; Jobmesh needs {wanted}: \
         change it with `nats stream edit {stream}` or give Jobmesh a NATS account of its own"
    )]
    Mismatch {
        /// The stream.
        stream: String,
        /// What it has.
        found: String,
        /// What it needs.
        wanted: String,
    },
}
