//! Looks through a valid JSON text without building a value: whatever its depth, in linear time and
//! without recursion.

use std::{borrow::Cow, fmt::Write};

use serde_json::value::RawValue;

use super::Json;

/// How deep objects and arrays may be nested. Readers in other languages stop at a thousand or so.
const DEPTH_MAX: usize = 500;
/// As many digits are a number that a double holds, if it has no exponent.
const PLAIN_DIGITS_MAX: usize = 300;
/// An exponent with more digits is read with its number.
const EXPONENT_DIGITS_MAX: usize = 4;
/// How much of an offending string or number an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 40;

/// A part of a JSON text that not every reader can represent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct Unrepresentable {
    /// The path, such as `data.pages[3].text`.
    pub path: String,
    /// What it is.
    pub what: String,
}

impl Unrepresentable {
    /// The same, in the value at `root`.
    #[must_use]
    pub fn within(self, root: &str) -> Self {
        Self { path: format!("{root}{}", self.path), ..self }
    }
}

/// What encloses the current token.
enum Level<'a> {
    /// An object, with the raw text of the current key.
    Object(Option<&'a str>),
    /// An array, with the index of the current item.
    Array(usize),
}

/// Checks that every reader of JSON can represent `text`, which must be valid JSON: strings without
/// lone surrogates, numbers that a double can hold, and at most 500 nested levels. `root` names the
/// text in errors.
///
/// # Errors
/// The first part that cannot be represented.
pub fn check(root: &str, text: &str) -> Result<(), Unrepresentable> {
    value_end(text, 0).map(drop).map_err(|error| error.within(root))
}

/// The members of a JSON object, in one pass that also checks its values as [`check`] does. Another
/// value has none.
pub fn members(object: &RawValue) -> Members<'_> {
    let text = object.get();
    Members { text, at: if text.starts_with('{') { 1 } else { text.len() } }
}

/// See [`members`]. Each item is a key and its value; the path of an error begins in the value. There
/// are no items behind an error.
pub struct Members<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, Result<Json, Unrepresentable>);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        let start_of = |from: usize, is_part: fn(&u8) -> bool| {
            Some(from + bytes.get(from..)?.iter().position(is_part)?)
        };
        let key = start_of(self.at, |byte| matches!(byte, b'"' | b'}'))?;
        if bytes[key] == b'}' {
            return None;
        }
        let key_end = string_end(bytes, key);
        let start = start_of(key_end, |byte| !byte.is_ascii_whitespace() && *byte != b':')?;
        let name = &self.text[key..key_end];
        let Some(key) = unescaped(name) else {
            self.at = bytes.len();
            let what = "the name of a member has half of a surrogate pair".to_owned();
            return Some((name.into(), Err(Unrepresentable { path: String::new(), what })));
        };
        let value = value_end(self.text, start);
        self.at = *value.as_ref().unwrap_or(&bytes.len());
        // SAFETY: a member of a valid JSON object is valid JSON, and the range is exactly its value.
        let value = value.map(|end| unsafe { Json::part_of(&self.text[start..end]) });
        Some((key, value))
    }
}

/// A JSON string without its escapes; `None` if they have half of a surrogate pair.
fn unescaped(string: &str) -> Option<Cow<'_, str>> {
    if string.contains('\\') {
        return serde_json::from_str(string).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(&string[1..string.len() - 1]))
}

/// Checks the value that starts at `at`. Returns where it ends.
fn value_end(text: &str, at: usize) -> Result<usize, Unrepresentable> {
    let mut levels: Vec<Level<'_>> = Vec::new();
    let bytes = text.as_bytes();
    let mut at = at;
    // In an object, strings before a colon are keys.
    let mut expects_key = false;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                let is_object = *byte == b'{';
                if levels.len() >= DEPTH_MAX {
                    let what = format!("it is nested deeper than {DEPTH_MAX} levels");
                    return Err(Unrepresentable { path: String::new(), what });
                }
                levels.push(if is_object { Level::Object(None) } else { Level::Array(0) });
                expects_key = is_object;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                levels.pop();
                expects_key = false;
                at += 1;
            }
            b',' => {
                match levels.last_mut() {
                    Some(Level::Array(index)) => *index += 1,
                    Some(Level::Object(_)) => expects_key = true,
                    None => {}
                }
                at += 1;
                continue;
            }
            b'"' => {
                let end = string_end(bytes, at);
                let string = &text[at..end];
                if expects_key {
                    if let Some(Level::Object(key)) = levels.last_mut() {
                        *key = Some(string);
                    }
                    expects_key = false;
                }
                if let Some(escape) = lone_surrogate(string) {
                    let what = format!("the string has {escape}, half of a surrogate pair");
                    return Err(Unrepresentable { path: path(&levels), what });
                }
                at = end;
            }
            b'-' | b'0'..=b'9' => {
                let length = 1 + bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
                let is_integer =
                    !matches!(bytes.get(at + length), Some(b'.' | b'e' | b'E' | b'+' | b'-'));
                if is_integer && length <= PLAIN_DIGITS_MAX {
                    at += length;
                    if levels.is_empty() {
                        return Ok(at);
                    }
                    continue;
                }
                let end = number_end(bytes, at);
                let number = &text[at..end];
                if !is_small(number) && !number.parse::<f64>().is_ok_and(f64::is_finite) {
                    let shown: String = number.chars().take(SHOWN_CHARS_MAX).collect();
                    let what = format!("the number {shown} is too large");
                    return Err(Unrepresentable { path: path(&levels), what });
                }
                at = end;
            }
            b'a'..=b'z' => {
                let length = bytes[at..].iter().position(|byte| !byte.is_ascii_lowercase());
                at = length.map_or(bytes.len(), |length| at + length);
            }
            _ => {
                at += 1;
                continue;
            }
        }
        if levels.is_empty() {
            return Ok(at);
        }
    }
    Ok(at)
}

/// True if a double holds a number, which its digits and its exponent show without reading it.
fn is_small(number: &str) -> bool {
    let bytes = number.as_bytes();
    // The exponent is at the end, and has few digits.
    let Some(digits) = bytes.iter().rev().position(|byte| !byte.is_ascii_digit()) else {
        return bytes.len() <= PLAIN_DIGITS_MAX;
    };
    let before = &bytes[..bytes.len() - digits];
    let (mantissa, is_negative) = match before {
        [mantissa @ .., b'e' | b'E'] | [mantissa @ .., b'e' | b'E', b'+'] => (mantissa, false),
        [mantissa @ .., b'e' | b'E', b'-'] => (mantissa, true),
        _ => return bytes.len() <= PLAIN_DIGITS_MAX,
    };
    if is_negative {
        return mantissa.len() <= PLAIN_DIGITS_MAX;
    }
    let exponent = &bytes[bytes.len() - digits..];
    let value = exponent.iter().fold(0, |value: usize, digit| {
        value.saturating_mul(10).saturating_add(usize::from(digit - b'0'))
    });
    digits <= EXPONENT_DIGITS_MAX && mantissa.len() + value <= PLAIN_DIGITS_MAX
}

/// The same JSON without white space between its tokens.
pub(super) fn compact(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut compact = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let end = match byte {
            b'"' => string_end(bytes, at),
            _ => at + 1,
        };
        if !byte.is_ascii_whitespace() {
            compact.push_str(&text[at..end]);
        }
        at = end;
    }
    compact
}

/// The end of the string that starts at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'\\' => end += 2,
            b'"' => return end + 1,
            _ => end += 1,
        }
    }
    bytes.len()
}

fn number_end(bytes: &[u8], at: usize) -> usize {
    let part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    bytes[at..].iter().position(|byte| !part(byte)).map_or(bytes.len(), |length| at + length)
}

/// The first escape of a surrogate that has no partner.
fn lone_surrogate(string: &str) -> Option<&str> {
    let unit = |at: usize| {
        let digits = string.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut rest = string.find('\\')?;
    loop {
        let escape = match unit(rest) {
            Some(0xd800..=0xdbff) if matches!(unit(rest + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => return string.get(rest..rest + 6),
            Some(_) => 6,
            None => 2,
        };
        rest += escape;
        rest += string.get(rest..)?.find('\\')?;
    }
}

fn path(levels: &[Level<'_>]) -> String {
    let mut path = String::new();
    for level in levels {
        // Writing to a string cannot fail.
        let _ = match level {
            Level::Object(None) => Ok(()),
            Level::Object(Some(key)) => {
                let key = serde_json::from_str(key).unwrap_or_else(|_| (*key).to_owned());
                write!(path, ".{key}")
            }
            Level::Array(index) => write!(path, "[{index}]"),
        };
    }
    path.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_reader_can_represent_is_named_by_its_path() {
        let deep = format!("{}{}", "[".repeat(501), "]".repeat(501));
        for (text, path) in [
            (r#"{"a":"\ud83e"}"#, "data.a"),
            (r#"{"a":"\udd80 x"}"#, "data.a"),
            (r#"{"a":"\ud83e\ud83e\udd80"}"#, "data.a"),
            (r#"{"a":[{"b":1},{"c":[0,1e400]}]}"#, "data.a[1].c[1]"),
            (r#"{"a":-1e999}"#, "data.a"),
            (r#"{"k\ud800":1}"#, r#"data."k\ud800""#),
            (&deep, "data"),
        ] {
            let error = check("data", text).expect_err("it cannot be represented");
            assert_eq!(error.path, path, "{error}");
        }
    }

    #[test]
    fn members_are_the_parts_of_an_object() {
        for (text, members_of) in [
            ("{}", vec![]),
            (
                r#"{ "a" : {"x":[1,{"}":2}]} ,"b":"}" , "c":null}"#,
                vec![("a", r#"{"x":[1,{"}":2}]}"#), ("b", r#""}""#), ("c", "null")],
            ),
            (r#"{"a\u0062":-1.5e3,"":[]}"#, vec![("ab", "-1.5e3"), ("", "[]")]),
        ] {
            let object: &RawValue = serde_json::from_str(text).expect("it is JSON");
            let found: Vec<_> = members(object)
                .map(|(key, value)| (key, value.expect("it can be represented")))
                .collect();
            let found: Vec<_> = found.iter().map(|(key, value)| (&**key, value.get())).collect();
            assert_eq!(found, members_of, "{text}");
        }
        let object = serde_json::from_str(r#"{"a":1,"b":{"c":[0,"\ud800"]}}"#).expect("JSON");
        let (key, value) = members(object).nth(1).expect("it has two");
        let error = value.expect_err("it has half of a surrogate pair");
        assert_eq!((&*key, &*error.within("data").path), ("b", "data.c[1]"));
        let array: &RawValue = serde_json::from_str(r#"["a","b"]"#).expect("JSON");
        assert_eq!(members(array).count(), 0);
        let half: &RawValue = serde_json::from_str(r#"{"\ud800":1,"b":2}"#).expect("JSON");
        let found: Vec<bool> = members(half).map(|(_, value)| value.is_ok()).collect();
        assert_eq!(found, [false]);
    }

    #[test]
    fn everything_else_passes() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for text in [
            r#"{"a":"\ud83e\udd80","b":"\\ud800","c":"\"\\\ud83e\udd80"}"#,
            r#"{"a":12345678901234567890123,"b":1.10,"c":-0,"d":1e308,"e":1e-999}"#,
            r#"{"t":"} ] , 1e999","x":[true,false,null]}"#,
            "[]",
            &deep,
        ] {
            assert_eq!(check("data", text), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_number_is_read_only_if_its_length_does_not_show_that_a_double_holds_it() {
        for number in ["0", "-1", "1.5", "1e5", "1E+22", "1e-400", "-0.0e0", "12e0010", "9e298"] {
            assert!(is_small(number), "{number}");
            assert!(number.parse::<f64>().is_ok_and(f64::is_finite), "{number}");
        }
        for number in ["1e400", "9e308", "1e00000000000000000000005", "1e309"] {
            assert!(!is_small(number), "{number}");
        }
        for (text, is_fine) in [("[1e308]", true), ("[1e309]", false), ("[-1E+400]", false)] {
            assert_eq!(check("data", text).is_ok(), is_fine, "{text}");
        }
    }
}
