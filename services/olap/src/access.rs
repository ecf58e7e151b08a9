//! Who may do what: the writer, which is metrics, everything; the reader, for people, only read.

use std::{path::Path, sync::Arc};

use anyhow::{Context, ensure};
use axum::http::HeaderMap;
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// The passwords of the two users. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Passwords {
    writer: Arc<str>,
    reader: Arc<str>,
}

/// The user of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Writer,
    Reader,
}

impl Passwords {
    /// Reads the passwords.
    ///
    /// # Errors
    /// If a file cannot be read or is empty, or both have the same password.
    pub fn read(writer: &Path, reader: &Path) -> anyhow::Result<Self> {
        let read = |file: &Path| -> anyhow::Result<Arc<str>> {
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            let password = text.trim();
            ensure!(!password.is_empty(), "{} is empty", file.display());
            Ok(password.into())
        };
        let passwords = Self { writer: read(writer)?, reader: read(reader)? };
        ensure!(passwords.writer != passwords.reader, "writer and reader have the same password");
        Ok(passwords)
    }

    /// The user whose password a request has: in ClickHouse's headers, in HTTP's basic authentication, or
    /// in the URL parameters `user` and `password`. A request need not name its user.
    pub fn user(&self, headers: &HeaderMap, parameters: &[(String, String)]) -> Option<User> {
        let parameter = |of: &str| {
            let found = parameters.iter().find(|(name, _)| name == of);
            found.map(|(_, value)| value.clone().into_bytes()).unwrap_or_default()
        };
        let header = |name| headers.get(name).map(|value| value.as_bytes().to_vec());
        let (name, given) = if let Some(key) = header("X-ClickHouse-Key") {
            (header("X-ClickHouse-User").unwrap_or_default(), key)
        } else if let Some(basic) = headers.get("Authorization") {
            of_basic(basic.as_bytes()).unwrap_or_default()
        } else {
            (parameter("user"), parameter("password"))
        };
        let (is_writer, is_reader) =
            (is_equal(&given, self.writer.as_bytes()), is_equal(&given, self.reader.as_bytes()));
        match (is_writer, is_reader) {
            (true, _) if is_named(&name, "writer") => Some(User::Writer),
            (false, true) if is_named(&name, "reader") => Some(User::Reader),
            _ => None,
        }
    }
}

/// Whether a request is of this user; `default` is the name that clients send by themselves.
fn is_named(name: &[u8], user: &str) -> bool {
    name.is_empty() || name == b"default" || name == user.as_bytes()
}

/// User and password of a header like `Basic dXNlcjpwYXNzd29yZA==`.
fn of_basic(header: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = BASE64_STANDARD.decode(header.strip_prefix(b"Basic ")?).ok()?;
    let colon = text.iter().position(|b| *b == b':')?;
    Some((text[..colon].to_vec(), text[colon + 1..].to_vec()))
}

/// Compares in a time that depends on the lengths alone.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_comes_in_a_header_or_a_parameter_and_tells_the_user() {
        let passwords = Passwords { writer: "write".into(), reader: "pass".into() };
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(name),
                value.parse().expect("it is a value"),
            )])
        };
        let pair = |value: &str| [("password".to_owned(), value.to_owned())];
        let (reader, none) = (Some(User::Reader), HeaderMap::new());
        assert_eq!(passwords.user(&headers("x-clickhouse-key", "pass"), &[]), reader);
        assert_eq!(
            passwords.user(&headers("authorization", "Basic cmVhZGVyOnBhc3M="), &[]),
            reader
        );
        let unknown = "Basic dTpwYXNz";
        assert_eq!(passwords.user(&headers("authorization", unknown), &[]), None);
        let named = |user: &str, password: &str| {
            [("user", user), ("password", password)]
                .map(|(name, it)| (name.to_owned(), it.to_owned()))
        };
        assert_eq!(passwords.user(&none, &named("writer", "pass")), None);
        assert_eq!(passwords.user(&none, &named("default", "pass")), reader);
        assert_eq!(passwords.user(&none, &pair("pass")), reader);
        assert_eq!(passwords.user(&none, &pair("write")), Some(User::Writer));
        assert_eq!(passwords.user(&none, &[]), None);
        assert_eq!(passwords.user(&none, &pair("pas")), None);
        assert_eq!(passwords.user(&headers("x-clickhouse-key", "x"), &pair("pass")), None);
        assert_eq!(passwords.user(&headers("authorization", "Bearer pass"), &[]), None);
    }
}
