//! The version of this program.

use std::sync::LazyLock;

/// The version, and the commit if it was known at the build: `JOBMESH_COMMIT`, which deploy/release.sh sets.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    option_env!("JOBMESH_COMMIT")
        .filter(|commit| !commit.is_empty())
        .map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
});
