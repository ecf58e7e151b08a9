//! As much of SQL as has to be read here: what kind of statement it is, and where an INSERT's
//! text ends and its data begins.

/// A statement, read.
#[derive(Debug, PartialEq)]
pub(crate) enum Statement {
    /// Returns rows and changes nothing.
    Read(String),
    /// Changes something.
    Write(String),
    /// An INSERT with data behind it.
    Insert {
        /// The statement without `FORMAT` and data.
        sql: String,
        /// The data's format.
        format: String,
        /// What of the data stood behind the statement in the same text.
        inline: Vec<u8>,
    },
}

/// Why a request cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It is not understood.
    Malformed(&'static str),
    /// ClickHouse servers can do it, and this interface cannot.
    Unsupported(&'static str),
}

/// What begins statements whose effect is on a connection: all clients share these.
const OF_CONNECTIONS: [&[u8]; 2] = [b"SET", b"USE"];
/// What begins statements that can make something temporary.
const MAKES: [&[u8]; 3] = [b"CREATE", b"REPLACE", b"ATTACH"];
const SHARED: &str = "no SET, USE and temporary tables, since clients share connections: send settings and the database as \
                      parameters of the URL";

/// Words that a statement of the reader must not have: they reach files or other servers, or change the
/// settings that prevent that. The engine's own `readonly` refuses table functions; these are what it
/// lets through.
const REFUSED_WORDS: [&str; 4] = ["FILE", "INFILE", "OUTFILE", "SETTINGS"];

impl Statement {
    /// Why the reader may not run it; `None` if it may. Conservative: what stands in a literal counts too.
    pub fn refusal(&self) -> Option<&'static str> {
        let Self::Read(sql) = self else {
            return Some(
                "a statement begins with SELECT, WITH, SHOW, DESCRIBE, EXISTS, EXPLAIN or VALUES",
            );
        };
        // It could begin another statement; that it could be in a literal is not worth a parser.
        if sql.contains(';') {
            return Some("one statement at a time, without ; inside: in a literal, write char(59)");
        }
        let is_in_word = |c: char| c.is_alphanumeric() || c == '_';
        // The table of settings is no clause; clients read it when they connect.
        let lower = sql.to_ascii_lowercase().replace(SETTINGS_TABLE, "system.");
        let mut words = lower.split(|c| !is_in_word(c));
        if words.any(|word| REFUSED_WORDS.iter().any(|it| word.eq_ignore_ascii_case(it))) {
            return Some(
                "FILE, INFILE, OUTFILE and SETTINGS are refused, also in literals: send such a literal as a parameter, \
                 as {p:String} with param_p in the URL, and settings as parameters of the URL",
            );
        }
        // In a quoted name an escape could write any of these words.
        let is_name_quote = |c: char| matches!(c, '`' | '"' | '\u{201c}' | '\u{201d}');
        if sql.contains('\\') && sql.contains(is_name_quote) {
            return Some("no \\ in a statement with quoted names");
        }
        // DESCRIBE asks a table function for its columns, whatever `readonly` says.
        let first = Words { text: sql.as_bytes(), at: 0 }.next();
        let is_query = first.is_some_and(|(_, word)| {
            ["SELECT", "WITH"].iter().any(|query| word.eq_ignore_ascii_case(query.as_bytes()))
        });
        if !is_query && sql.contains('(') {
            return Some("( only in SELECT and WITH");
        }
        None
    }
}

/// The table that shows settings.
const SETTINGS_TABLE: &str = "system.settings";

/// Words that begin a statement which changes nothing.
const READS: [&str; 8] =
    ["SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "VALUES"];

/// Reads a statement as HTTP brings it: the `query` parameter, then the body. Data may stand
/// behind an INSERT's `FORMAT`, in the text or as the whole body.
pub(crate) fn read(query: &str, body: &[u8]) -> Result<Statement, Invalid> {
    if query.trim().is_empty() {
        return read_text(body, &[]);
    }
    read_text(query.as_bytes(), body)
}

fn read_text(text: &[u8], body: &[u8]) -> Result<Statement, Invalid> {
    let words = Words { text, at: 0 };
    let mut insert = false;
    let mut first = None;
    let mut format_at = None;
    let mut words = words;
    while let Some((start, word)) = words.next() {
        let upper = word.to_ascii_uppercase();
        if first.is_none() {
            insert = upper == b"INSERT";
            first = Some(upper.clone());
            if !insert {
                break;
            }
        }
        // An INSERT from a SELECT or with VALUES has nothing behind it that is not SQL.
        if upper == b"SELECT" || upper == b"VALUES" || upper == b"WITH" {
            insert = false;
            break;
        }
        if upper == b"FORMAT" {
            format_at = Some(start);
            break;
        }
    }
    let first = first.ok_or(Invalid::Malformed("there is no statement"))?;
    let is_temporary = MAKES.contains(&&*first) && makes_temporary(words.clone());
    if is_temporary || OF_CONNECTIONS.contains(&&*first) {
        return Err(Invalid::Unsupported(SHARED));
    }
    if let (true, Some(start)) = (insert, format_at) {
        let (_, format) =
            words.next().ok_or(Invalid::Malformed("no format stands behind FORMAT"))?;
        let format = String::from_utf8_lossy(format).into_owned();
        if format.eq_ignore_ascii_case("VALUES") {
            return sql(text, body).map(Statement::Write);
        }
        let sql = utf8(&text[..start])?.trim_end().to_owned();
        let inline = [after_blank(&text[words.at..]), body].concat();
        return Ok(Statement::Insert { sql, format, inline });
    }
    let sql = sql(text, body)?;
    if (Words { text: sql.as_bytes(), at: 0 }).has_semicolon() {
        return Err(Invalid::Unsupported("one statement at a time, without ; inside"));
    }
    if READS.iter().any(|word| word.as_bytes() == first) {
        return Ok(Statement::Read(sql));
    }
    Ok(Statement::Write(sql))
}

/// Whether the words behind CREATE and the like make something that is of a connection.
fn makes_temporary(mut words: Words<'_>) -> bool {
    std::iter::from_fn(|| words.next())
        .map(|(_, word)| word.to_ascii_uppercase())
        .take_while(|word| !matches!(&**word, b"TABLE" | b"VIEW" | b"DATABASE" | b"DICTIONARY"))
        .any(|word| word == b"TEMPORARY")
}

/// The whole text as one statement, as ClickHouse puts query and body together.
fn sql(text: &[u8], body: &[u8]) -> Result<String, Invalid> {
    let mut sql = utf8(text)?.to_owned();
    if !body.is_empty() {
        sql.push('\n');
        sql.push_str(utf8(body)?);
    }
    Ok(sql.trim_end().trim_end_matches(';').to_owned())
}

fn utf8(text: &[u8]) -> Result<&str, Invalid> {
    std::str::from_utf8(text).map_err(|_| Invalid::Malformed("the statement is not UTF-8"))
}

/// Inline data begins behind the blanks and one line break that follow the format.
fn after_blank(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r')).count();
    let text = &text[blanks..];
    match text.first() {
        Some(b'\n' | b';') => &text[1..],
        _ => text,
    }
}

/// The words of a statement, with quotes, comments and parentheses passed over. Comments are those of ClickHouse's lexer:
/// `--`, `//` and `#` to the end of the line, and `/* */`, which nest.
#[derive(Clone)]
struct Words<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    /// Passes over a quoted text or a comment, if one begins here.
    fn skip(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let length = match rest {
            [quote @ (b'\'' | b'"' | b'`'), ..] => quoted(rest, *quote),
            [b'-', b'-', ..] | [b'/', b'/', ..] | [b'#', ..] => until(rest, b"\n"),
            [b'/', b'*', ..] => comment(rest),
            _ => return false,
        };
        self.at += length;
        true
    }

    /// Whether something follows a semicolon.
    fn has_semicolon(mut self) -> bool {
        let mut is_behind = false;
        while let Some(byte) = self.text.get(self.at).copied() {
            let is_text = matches!(byte, b'\'' | b'"' | b'`');
            if self.skip() {
                if is_behind && is_text {
                    return true;
                }
                continue;
            }
            match byte {
                b';' => is_behind = true,
                _ if byte.is_ascii_whitespace() => {}
                _ if is_behind => return true,
                _ => {}
            }
            self.at += 1;
        }
        false
    }

    fn next(&mut self) -> Option<(usize, &'a [u8])> {
        let mut depth = 0usize;
        while self.at < self.text.len() {
            if self.skip() {
                continue;
            }
            let rest = &self.text[self.at..];
            match rest[0] {
                b'(' => {
                    depth += 1;
                    self.at += 1;
                }
                b')' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                b if b.is_ascii_alphabetic() || b == b'_' => {
                    let start = self.at;
                    let in_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
                    let length = rest.iter().take_while(|b| in_word(b)).count();
                    self.at += length;
                    if depth == 0 {
                        return Some((start, &rest[..length]));
                    }
                }
                _ => self.at += 1,
            }
        }
        None
    }
}

/// The length of a quoted text: a quote inside is doubled or stands behind a backslash.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The length of a comment that can have others in it.
fn comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at + 2 <= text.len() {
        match &text[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return at + 2,
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    text.len()
}

fn until(text: &[u8], end: &[u8]) -> usize {
    let found = text.windows(end.len()).position(|window| window == end);
    found.map_or(text.len(), |at| at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserts_are_split_from_their_data_and_nothing_else_is() {
        let insert = |sql: &str, format: &str, inline: &[u8]| Statement::Insert {
            sql: sql.into(),
            format: format.into(),
            inline: inline.into(),
        };
        let cases: [(&str, &[u8], Statement); 9] = [
            ("SELECT 1", b"", Statement::Read("SELECT 1".into())),
            ("", b"select 1;\n", Statement::Read("select 1".into())),
            ("SELECT", b"'FORMAT x'", Statement::Read("SELECT\n'FORMAT x'".into())),
            (
                "-- a comment\nCREATE TABLE t (a Int8)",
                b"",
                Statement::Write("-- a comment\nCREATE TABLE t (a Int8)".into()),
            ),
            (
                "INSERT INTO t(`a`) FORMAT RowBinary",
                b"\n\x00\xff",
                insert("INSERT INTO t(`a`)", "RowBinary", b"\n\x00\xff"),
            ),
            ("", b"INSERT INTO t FORMAT CSV\n1,2\n", insert("INSERT INTO t", "CSV", b"1,2\n")),
            ("INSERT INTO `FORMAT` FORMAT CSV", b"1", insert("INSERT INTO `FORMAT`", "CSV", b"1")),
            (
                "INSERT INTO t VALUES ('a FORMAT b')",
                b"",
                Statement::Write("INSERT INTO t VALUES ('a FORMAT b')".into()),
            ),
            (
                "INSERT INTO t SELECT 1 FORMAT Null",
                b"",
                Statement::Write("INSERT INTO t SELECT 1 FORMAT Null".into()),
            ),
        ];
        for (query, body, expected) in cases {
            assert_eq!(read(query, body), Ok(expected), "{query}");
        }
        for (sql, is_read) in [
            ("SELECT 1;", true),
            ("SELECT 1 into Outfile 'x'", false),
            ("DROP TABLE t", false),
            ("SELECT file('/x')", false),
            ("SELECT `FILE`('/x')", false),
            ("SELECT `f\\x69le`('/x')", false),
            ("SELECT 1 SETTINGS readonly = DEFAULT", false),
            ("SELECT name FROM system.settings", true),
            ("SELECT name FROM SYSTEM.settings SETTINGS readonly = 0", false),
            ("SELECT name FROM system.settings_changes, system . settings", false),
            ("DESCRIBE TABLE url('http://x')", false),
            ("/* SELECT */ DESCRIBE TABLE url('http://x')", false),
            ("-- SELECT\nDESCRIBE TABLE url('http://x')", false),
            ("# SELECT\nDESCRIBE TABLE url('http://x')", false),
            ("SELECT profile, file_size FROM t", true),
            ("SELECT \"a\" FROM t WHERE match(b, 'c')", true),
            ("DESCRIBE TABLE job_runs", true),
        ] {
            let refusal = read(sql, b"").map(|it| it.refusal());
            assert_eq!(refusal.map(|it| it.is_none()), Ok(is_read), "{sql}");
        }
        let of_a_connection = [
            "SET a = 1",
            "/* */ use system",
            "// SELECT\nSET a = 1",
            "# SELECT\nUSE system",
            "/* /* */ SELECT */ SET a = 1",
            "CREATE temporary TABLE t (a Int8)",
            "CREATE OR REPLACE TEMPORARY TABLE t (a Int8)",
            "ATTACH TEMPORARY TABLE t (a Int8)",
        ];
        for sql in of_a_connection {
            assert_eq!(read(sql, b""), Err(Invalid::Unsupported(SHARED)), "{sql}");
        }
        assert!(read("CREATE TABLE temporary (a Int8)", b"").is_ok());
        for sql in
            ["SELECT 1; SET a = 1", "DROP TABLE a; DROP TABLE b", "SELECT ';' ; -- \nSELECT 1"]
        {
            assert!(matches!(read(sql, b""), Err(Invalid::Unsupported(_))), "{sql}");
        }
        for sql in ["SELECT ';', \"a;b\"", "SELECT 1 /* ; */ -- ;", "SELECT 1 ;;  "] {
            assert!(read(sql, b"").is_ok(), "{sql}");
        }
        assert!(read(" ", b"").is_err());
        assert!(read("INSERT INTO t FORMAT", b"").is_err());
    }
}
