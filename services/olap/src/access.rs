//! Who may do what: a client needs the password, GET only reads, and no statement reaches files or
//! other servers.

use axum::http::HeaderMap;
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// Functions and table engines that read or write files and other servers, in lower case. Each also
/// has a variant for clusters.
const OUTSIDE: [&str; 30] = [
    "azureblobstorage",
    "deltalake",
    "executable",
    "executablepool",
    "file",
    "filelog",
    "gcs",
    "hdfs",
    "http",
    "hudi",
    "iceberg",
    "icebergazure",
    "iceberghdfs",
    "iceberglocal",
    "icebergs3",
    "jdbc",
    "kafka",
    "mongodb",
    "mysql",
    "nats",
    "odbc",
    "oss",
    "postgresql",
    "python",
    "rabbitmq",
    "redis",
    "remote",
    "remotesecure",
    "s3",
    "url",
];
/// Words that name a file of the server.
const FILE_WORDS: [&str; 2] = ["infile", "outfile"];

/// Why a request is refused: ClickHouse's code, and the reason.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub code: u32,
    pub why: String,
}

/// True if a request has the password: as ClickHouse's header, as HTTP's basic authentication, or as the
/// parameter `password`.
pub(crate) fn has_password(
    password: &str,
    headers: &HeaderMap,
    pairs: &[(String, String)],
) -> bool {
    let parameter = || pairs.iter().find(|(name, _)| name == "password");
    let given = if let Some(key) = headers.get("X-ClickHouse-Key") {
        key.as_bytes().to_vec()
    } else if let Some(basic) = headers.get("Authorization") {
        of_basic(basic.as_bytes()).unwrap_or_default()
    } else {
        parameter().map(|(_, value)| value.clone().into_bytes()).unwrap_or_default()
    };
    is_equal(&given, password.as_bytes())
}

/// The password of a header like `Basic dXNlcjpwYXNzd29yZA==`.
fn of_basic(header: &[u8]) -> Option<Vec<u8>> {
    let text = BASE64_STANDARD.decode(header.strip_prefix(b"Basic ")?).ok()?;
    let colon = text.iter().position(|b| *b == b':')?;
    Some(text[colon + 1..].to_vec())
}

/// Compares in a time that depends on the lengths alone.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && differences == 0
}

/// Checks that a statement stays inside the tables of this engine.
///
/// # Errors
/// The function or word that does not.
pub(crate) fn check_inside(sql: &str) -> Result<(), Refused> {
    let mut words = Words { rest: sql };
    while let Some((word, is_called)) = words.next() {
        let word = word.to_ascii_lowercase();
        let function = word.strip_suffix("cluster").unwrap_or(&word);
        let is_outside = is_called && OUTSIDE.contains(&function);
        if is_outside || FILE_WORDS.contains(&&*word) {
            let why = format!("{word} is not allowed here: statements cannot use files or servers");
            return Err(Refused { code: 497, why });
        }
    }
    Ok(())
}

/// The words and quoted identifiers of a statement, without comments and literals, each with whether an
/// opening parenthesis follows.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<(&'a str, bool)> {
        loop {
            self.skip_blank();
            let first = self.rest.chars().next()?;
            let is_in_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
            match first {
                '\'' => {
                    self.quoted('\'');
                }
                '"' | '`' => {
                    let name = self.quoted(first);
                    return Some((name, self.is_called()));
                }
                _ if is_in_word(first) => {
                    let end = self.rest.find(|c| !is_in_word(c)).unwrap_or(self.rest.len());
                    let word = &self.rest[..end];
                    self.rest = &self.rest[end..];
                    // A here-document: $tag$ … $tag$.
                    if word.len() > 1 && word.starts_with('$') && word.ends_with('$') {
                        let end = self.rest.find(word).map(|at| at + word.len());
                        self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
                        continue;
                    }
                    return Some((word, self.is_called()));
                }
                _ => self.rest = &self.rest[first.len_utf8()..],
            }
        }
    }

    fn is_called(&mut self) -> bool {
        self.skip_blank();
        self.rest.starts_with('(')
    }

    fn skip_blank(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            let end = match self.rest.as_bytes() {
                [b'-', b'-', ..] | [b'#', b' ' | b'!', ..] => "\n",
                [b'/', b'*', ..] => "*/",
                _ => return,
            };
            let at = self.rest.find(end).map_or(self.rest.len(), |at| at + end.len());
            self.rest = &self.rest[at..];
        }
    }

    /// Passes a quoted text, and returns what is inside: a quote is doubled there, or escaped.
    fn quoted(&mut self, quote: char) -> &'a str {
        let (text, mut at) = (self.rest, 1);
        let bytes = text.as_bytes();
        while at < bytes.len() {
            match bytes[at] {
                b'\\' => at += 2,
                b if b == quote as u8 => break,
                _ => at += 1,
            }
        }
        let end = at.min(text.len());
        self.rest = text.get(end + 1..).unwrap_or_default();
        text.get(1..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_stay_inside() {
        for inside in [
            "SELECT count() FROM job_runs WHERE project = 'file(x)'",
            "INSERT INTO job_runs (url, file) VALUES ('a', 'b')",
            "SELECT url, file FROM t -- url('http://x')",
            "CREATE TABLE t (file String, s3 Int8) ENGINE = MergeTree ORDER BY file",
            "SELECT 'it''s', \"file\" FROM t /* remote(x) */",
            "SELECT $x$ url( $x$",
        ] {
            assert_eq!(check_inside(inside), Ok(()), "{inside}");
        }
        for outside in [
            "SELECT * FROM file('/etc/passwd', 'LineAsString')",
            "SELECT * FROM `file` ('/etc/passwd')",
            "SELECT * FROM (SELECT * FROM Url /* x */ ('http://169.254.169.254/'))",
            "SELECT * FROM remote('10.0.0.1', system.one)",
            "SELECT * FROM s3Cluster('c', 'https://x')",
            "INSERT INTO FUNCTION file('x.csv') SELECT 1",
            "CREATE TABLE t (a Int8) ENGINE = URL('http://x')",
            "SELECT 1 INTO OUTFILE '/tmp/x'",
            "SELECT '\\'', file('x')",
            "CREATE DICTIONARY d (a UInt8) PRIMARY KEY a SOURCE(HTTP(URL 'http://x'))",
            "SELECT $x$ $x$, file('x')",
        ] {
            assert!(check_inside(outside).is_err(), "{outside}");
        }
    }

    #[test]
    fn password_comes_in_a_header_or_a_parameter() {
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(name),
                value.parse().expect("it is a value"),
            )])
        };
        let pair = |value: &str| [("password".to_owned(), value.to_owned())];
        assert!(has_password("pass", &headers("x-clickhouse-key", "pass"), &[]));
        assert!(has_password("pass", &headers("authorization", "Basic dTpwYXNz"), &[]));
        assert!(has_password("pass", &HeaderMap::new(), &pair("pass")));
        assert!(!has_password("pass", &HeaderMap::new(), &[]));
        assert!(!has_password("pass", &HeaderMap::new(), &pair("pas")));
        assert!(!has_password("pass", &headers("x-clickhouse-key", "other"), &pair("pass")));
        assert!(!has_password("pass", &headers("authorization", "Bearer pass"), &[]));
    }
}
