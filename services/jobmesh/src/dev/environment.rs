//! Which variables of this process's environment a child is given: settings, and of the secrets only
//! those that it needs.

use std::ffi::{OsStr, OsString};

use service::Identity;

/// What a child is, as far as its environment is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// nats-server and ClickHouse's engine: no setting of ours that is secret.
    Storage,
    /// A state service or an edge: NATS alone.
    Mesh,
    /// Metrics: NATS and ClickHouse.
    Metrics,
    /// A processor: NATS, and all that its handlers may need.
    Processor,
}

/// What programs need wherever they run.
const PLAIN: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TZ",
    "TMPDIR",
    "TERM",
    "NO_COLOR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
/// What only clients of NATS need.
const NATS: &str = "JOBMESH_NATS_";
/// What only an edge of its own may have.
const TLS: &str = "JOBMESH_TLS_";
/// What `dev` chooses itself.
const METRICS_LISTEN: &str = "JOBMESH_METRICS_LISTEN";
/// What only services that send traces need.
const OTLP: &str = "OTEL_EXPORTER_OTLP_";
/// What no child needs.
const KEY: &str = "JOBMESH_KEY";
/// What only metrics needs.
const CLICKHOUSE: &str = "JOBMESH_CLICKHOUSE_";
/// What only processors need, beside [`LLM`]: URLs may hold passwords.
const HANDLERS: [&str; 4] =
    ["JOBMESH_HTTP_URL", "JOBMESH_COMMAND", "JOBMESH_COMMAND_ENV", "JOBMESH_HANDLERS"];
/// The same.
const LLM: &str = "JOBMESH_LLM_";

impl Role {
    /// The role of a service.
    pub fn of(identity: Identity) -> Self {
        match identity {
            Identity::Edge | Identity::State => Self::Mesh,
            Identity::Metrics => Self::Metrics,
            Identity::Processor => Self::Processor,
        }
    }

    /// The variables that a child of this role is given.
    pub fn environment(self, has_own_nats: bool) -> Vec<(OsString, OsString)> {
        let given = |name: &OsStr| self.is_given(&name.to_string_lossy(), has_own_nats);
        std::env::vars_os().filter(|(name, _)| given(name)).collect()
    }

    fn is_given(self, name: &str, has_own_nats: bool) -> bool {
        // `dev` asks its edge over plain HTTP.
        if name.starts_with(TLS) {
            return false;
        }
        // The key of a person who uses the commands for clients.
        if name.starts_with(KEY) || name == METRICS_LISTEN {
            return false;
        }
        let of_handlers = HANDLERS.contains(&name) || name.starts_with(LLM);
        if name.starts_with(NATS) {
            return self != Self::Storage && !has_own_nats;
        }
        if name.starts_with(CLICKHOUSE) {
            return self == Self::Metrics;
        }
        match self {
            // Its handlers may be given any of them.
            Self::Processor => true,
            _ if of_handlers => false,
            // Its headers may hold a token.
            Self::Mesh | Self::Metrics if name.starts_with(OTLP) => true,
            _ => name.starts_with("JOBMESH_") || name.starts_with("LC_") || PLAIN.contains(&name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_is_given_the_secrets_that_it_needs_and_no_others() {
        use Role::{Mesh, Metrics, Processor, Storage};
        let roles = [Storage, Mesh, Metrics, Processor];
        for (name, given) in [
            ("PATH", [true; 4]),
            ("LC_ALL", [true; 4]),
            ("JOBMESH_LOG", [true; 4]),
            ("JOBMESH_NATS_PASSWORD", [false, true, true, true]),
            ("JOBMESH_CLICKHOUSE_PASSWORD", [false, false, true, false]),
            ("JOBMESH_KEY", [false; 4]),
            ("JOBMESH_KEY_FILE", [false; 4]),
            ("JOBMESH_COMMANDS_MB", [true; 4]),
            ("JOBMESH_COMMAND", [false, false, false, true]),
            ("OTEL_EXPORTER_OTLP_HEADERS", [false, true, true, true]),
            ("JOBMESH_LLM_KEY", [false, false, false, true]),
            ("JOBMESH_HTTP_URL", [false, false, false, true]),
            ("AWS_SECRET_ACCESS_KEY", [false, false, false, true]),
        ] {
            assert_eq!(roles.map(|role| role.is_given(name, false)), given, "{name}");
        }
        assert!(!Mesh.is_given("JOBMESH_NATS_PASSWORD", true));
    }
}
