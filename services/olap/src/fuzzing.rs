//! The parser of statements, for fuzz/.

/// A statement.
pub fn statement(data: &[u8]) {
    let statement = crate::statement::read("", data);
    let _ = statement.map(|statement| statement.refusal());
}
