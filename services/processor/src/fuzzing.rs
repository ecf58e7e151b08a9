//! The parsers of what servers answer, for fuzz/.

/// An answer of a server, as the handlers read it.
pub fn answer(data: &[u8]) {
    crate::handlers::try_read(data);
}
