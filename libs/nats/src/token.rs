//! The only door from a user's id into a subject.
//!
//! The broker stores what is published to `a.*`, and a dot splits a token: an id that got in raw
//! would be read as another's subject. So `[A-Za-z0-9_-]{1,64}` passes, less the encoding's own
//! mark, and everything else is encoded reversibly.

use std::fmt;

/// How long an id may be and still pass as it is, in bytes.
const PLAIN_BYTES_MAX: usize = 64;
/// What an encoded token begins with. A plain id that begins so is encoded as well.
const MARK: &str = "x-";

/// An id as one token of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubjectToken(String);

impl SubjectToken {
    /// The token of `id`.
    pub fn new(id: &str) -> Self {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let passes = (1..=PLAIN_BYTES_MAX).contains(&id.len())
            && id.bytes().all(plain)
            && !id.starts_with(MARK);
        if passes {
            return Self(id.to_owned());
        }
        let mut token = String::with_capacity(MARK.len() + 2 * id.len());
        token.push_str(MARK);
        for byte in id.bytes() {
            token.push_str(&format!("{byte:02x}"));
        }
        Self(token)
    }

    /// The id that a token stands for; `None` where no id gives that token.
    pub fn decode(token: &str) -> Option<String> {
        let id = match token.strip_prefix(MARK) {
            None => token.to_owned(),
            Some(digits) => {
                let pairs = digits.as_bytes().chunks(2);
                let bytes: Option<Vec<u8>> = pairs
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                    .collect();
                String::from_utf8(bytes?).ok()?
            }
        };
        (Self::new(&id).0 == token).then_some(id)
    }
}

impl fmt::Display for SubjectToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_ids_pass_and_all_others_come_back_as_they_were() {
        assert_eq!(SubjectToken::new("invoices-2026_q4").to_string(), "invoices-2026_q4");
        let long = "a".repeat(128);
        for id in ["a.b", "*", ">", " ", "", "\u{1f980}", "x-61", "$JS.API", "a\r\nb", &long] {
            let token = SubjectToken::new(id).to_string();
            assert!(token.starts_with(MARK), "{token}");
            assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{token}");
            assert_eq!(SubjectToken::decode(&token).as_deref(), Some(id));
        }
        assert_ne!(SubjectToken::new("x-61"), SubjectToken::new("a"));
        assert_eq!(SubjectToken::decode("x-6"), None);
        assert_eq!(SubjectToken::decode("a.b"), None);
    }
}
