//! Versions of the messages between services.
//!
//! A message, and a snapshot, says which version a program must know to read it: that of its newest part. So programs of two
//! versions work side by side until something new is used, and an older one stops before what it would misunderstand. A
//! field that may be ignored needs no new version.

/// The version of a message that names none.
pub const FIRST: u32 = 2;
/// The newest version that this program knows.
pub const KNOWN: u32 = if cfg!(feature = "next-version") { 3 } else { 2 };

/// Only a newer program can read this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs version {required_version} of messages, and this program knows {KNOWN}: upgrade this service"
)]
pub struct Newer {
    /// The version that its reader must know.
    pub required_version: u32,
}

/// Whether this program can read what requires a version.
///
/// # Errors
/// If only a newer one can.
pub fn check(required_version: u32) -> Result<(), Newer> {
    if required_version > KNOWN { Err(Newer { required_version }) } else { Ok(()) }
}

pub(crate) fn first() -> u32 {
    FIRST
}
