//! Secrets: from the environment or from a file, never from an argument, which everybody on the machine
//! could read.

use std::path::Path;

use anyhow::{Context, bail};
use nats::access::Secret;

/// The secret that is in the environment variable `variable`, or else in `file`, without the line break
/// at its end; `None` if neither is set.
///
/// # Errors
/// If both are set, or the file cannot be read.
pub fn read(variable: &str, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    match (value, file) {
        (Some(_), Some(file)) => {
            bail!("{variable} is set, and so is the file {}: keep one", file.display())
        }
        (Some(value), None) => Ok(Some(value.into())),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            Ok(Some(text.trim_end_matches(['\r', '\n']).into()))
        }
        (None, None) => Ok(None),
    }
}
