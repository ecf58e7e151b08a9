//! The text of a key: `jm_<id>_<secret><check>`.

use sha2::{Digest, Sha256};

use super::SecretHash;
use crate::access::{LETTERS, Secret};

const PREFIX: &str = "jm_";
pub(super) const ID_CHARS: usize = 12;
const SECRET_CHARS: usize = 32;
const CHECK_CHARS: usize = 6;

/// A key as a client sends it, split into its parts. Its check is right.
pub struct KeyText<'a> {
    /// The part that names the key.
    pub id: &'a str,
    secret: &'a str,
}

impl<'a> KeyText<'a> {
    /// Reads a key; `None` if it is malformed.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, rest) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_sized = id.len() == ID_CHARS && rest.len() == SECRET_CHARS + CHECK_CHARS;
        if !is_sized || !text.is_ascii() {
            return None;
        }
        let (secret, check) = rest.split_at(SECRET_CHARS);
        (check == check_of(id, secret)).then_some(Self { id, secret })
    }

    /// The hash of its secret, as records have it.
    pub fn secret_hash(&self) -> String {
        sha256(self.secret)
    }
}

/// True for a text that names a key.
pub(super) fn is_id(id: &str) -> bool {
    id.len() == ID_CHARS && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A new text of a key, and the hash of its secret.
pub(super) fn new_text(id: &str) -> Result<(Secret, SecretHash), std::io::Error> {
    let secret = Secret::random(SECRET_CHARS)?;
    let secret = secret.reveal();
    let text = format!("{PREFIX}{id}_{secret}{}", check_of(id, secret));
    Ok((text.into(), SecretHash { sha256: sha256(secret), until: None }))
}

/// The hash of a secret, in hexadecimal digits.
fn sha256(secret: &str) -> String {
    // For each request: two digits at a time, without a text of their own.
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    Sha256::digest(secret).iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The check of a key: letters and digits of a hash.
fn check_of(id: &str, secret: &str) -> String {
    let hash = Sha256::digest(format!("{id}_{secret}"));
    let letters = hash.iter().take(CHECK_CHARS);
    letters.map(|byte| char::from(LETTERS[usize::from(byte % 62)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_keys_are_told_from_others_without_a_look_up() {
        let (text, _) = new_text("abcdefABCDEF").expect("there are random bytes");
        let text = text.reveal();
        assert!(KeyText::parse(text).is_some() && text.len() == 54, "{text}");
        let last = if text.ends_with('a') { "b" } else { "a" };
        let typing_error = format!("{}{last}", &text[..text.len() - 1]);
        for malformed in ["", "jm_", "jm_x_y", &text[..53], &typing_error, &text.replace('_', "-")]
        {
            assert!(KeyText::parse(malformed).is_none(), "{malformed}");
        }
        assert!(KeyText::parse(&format!("jm_abcdefABCDE\u{e9}_{}", "x".repeat(37))).is_none());
    }
}
