//! The pattern of an error: its text without what differs between two occurrences of one problem.
//!
//! Errors with the same pattern form an error group.

use std::iter::Peekable;

use sha2::{Digest, Sha256};

/// The longest pattern, in characters.
const PATTERN_CHARS_MAX: usize = 200;
/// The shortest mix of letters and digits that counts as an id.
const ID_CHARS_MIN: usize = 8;
/// Words before a number that is a status.
const STATUS_WORDS: [&str; 5] = ["answered", "status", "code", "http", "error"];

/// The pattern of an error: URLs become `<url>`, quoted text `<text>`, ids `<id>` and other numbers `#`. An HTTP
/// status keeps its number, and a provider's code in quotes (`"rate_limit_exceeded"`) its text.
///
/// ```
/// let pattern = job::error_pattern("answered 429: job 17 of \"Müller\" is over rate_limit_exceeded");
/// assert_eq!(pattern, "answered 429: job # of <text> is over rate_limit_exceeded");
/// ```
pub fn error_pattern(error: &str) -> String {
    let mut pattern = String::new();
    let mut last_word = String::new();
    let mut previous = None;
    let mut rest = error.chars().peekable();
    let mut chars = 0;
    while let Some(&next) = rest.peek() {
        if chars >= PATTERN_CHARS_MAX {
            break;
        }
        let start = pattern.len();
        if next.is_whitespace() {
            take_while(&mut rest, char::is_whitespace);
            pattern.push(' ');
        } else if opens_quote(next, previous) {
            rest.next();
            pattern.push_str(&quoted(next, &mut rest));
        } else if is_of_word(next) {
            let word = take_while(&mut rest, is_of_word);
            if is_scheme(&word) && rest.clone().take(3).eq("://".chars()) {
                take_while(&mut rest, |c| !c.is_whitespace() && !"\"'<>)".contains(c));
                pattern.push_str("<url>");
            } else {
                pattern.push_str(&word_pattern(&word, &last_word));
            }
            last_word = word;
        } else {
            rest.next();
            pattern.push(next);
        }
        previous = Some(next);
        chars += pattern[start..].chars().count();
    }
    pattern.trim().chars().take(PATTERN_CHARS_MAX).collect()
}

/// The group of an error: the first 8 bytes of the SHA-256 hash of its pattern; 0 without an error.
pub fn error_group(error: &str) -> u64 {
    if error.is_empty() {
        return 0;
    }
    let hash = Sha256::digest(error_pattern(error));
    u64::from_be_bytes(hash.first_chunk().copied().expect("a hash has 32 bytes"))
}

fn take_while(
    rest: &mut Peekable<impl Iterator<Item = char>>,
    is: impl Fn(char) -> bool,
) -> String {
    std::iter::from_fn(|| rest.next_if(|c| is(*c))).collect()
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-')
}

fn is_scheme(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_alphabetic())
}

/// True for a quotation mark that begins a quotation; an apostrophe follows a letter.
fn opens_quote(c: char, previous: Option<char>) -> bool {
    match c {
        '"' | '`' => true,
        '\'' => previous.is_none_or(|previous| !is_of_word(previous)),
        _ => false,
    }
}

/// What stands for a quotation, whose opening mark has been read.
fn quoted(mark: char, rest: &mut Peekable<impl Iterator<Item = char> + Clone>) -> String {
    // A mark without a second one is no quotation.
    if !rest.clone().any(|c| c == mark) {
        return mark.to_string();
    }
    let text = take_while(rest, |c| c != mark);
    rest.next();
    let is_code = text.contains('_') && text.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    if is_code || text.is_empty() { format!("{mark}{text}{mark}") } else { "<text>".to_owned() }
}

fn word_pattern(word: &str, last_word: &str) -> String {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    if digits == 0 {
        return word.to_owned();
    }
    let is_number = digits == word.len();
    let follows_status_word =
        STATUS_WORDS.iter().any(|status| last_word.eq_ignore_ascii_case(status));
    if is_number && digits == 3 && follows_status_word {
        return word.to_owned();
    }
    let is_hexadecimal = word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let mixes_often = word.split('-').any(|part| {
        let part_digits = part.chars().filter(char::is_ascii_digit).count();
        part.len() >= ID_CHARS_MIN && part_digits >= 2 && part_digits < part.len()
    });
    if !is_number && word.len() >= ID_CHARS_MIN && (is_hexadecimal || mixes_often) {
        return "<id>".to_owned();
    }
    let mut pattern = String::new();
    for c in word.chars() {
        match c.is_ascii_digit() {
            false => pattern.push(c),
            true if pattern.ends_with('#') => {}
            true => pattern.push('#'),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn occurrences_of_one_problem_share_a_pattern() {
        for (first, second, pattern) in [
            ("timed out after 30 s", "timed out after 4500 s", "timed out after # s"),
            (
                "GET https://a.example/x?y=1 failed",
                "GET http://b.example failed",
                "GET <url> failed",
            ),
            ("no page 'one'", "no page 'it is 2'", "no page <text>"),
            (
                "request req_011CSHoEeqs5C35K2UUqR7Fy failed",
                "request req_933CSXoEeqs5C35K2UUqR7Fy failed",
                "request <id> failed",
            ),
            (
                "job 01a20b4c-6a7d-74fa-9f39-6814a2640da1 is missing",
                "job 01b30b4c-6a7d-74fa-9f39-6814a2640da2 is missing",
                "job <id> is missing",
            ),
            ("row-17 of p4", "row-2 of p99", "row-# of p#"),
            ("it can't be 5", "it can't be 77", "it can't be #"),
            ("a  b\n c 1", "a b c 22", "a b c #"),
        ] {
            assert_eq!(error_pattern(first), pattern);
            assert_eq!(error_pattern(second), pattern);
        }
    }

    #[test]
    fn status_and_code_stay() {
        for error in [
            "answered 422 Unprocessable Entity: no such page",
            "HTTP 503",
            "answered 400: {\"code\": \"context_length_exceeded\"}",
        ] {
            let pattern = error_pattern(error).replace("<text>", "\"code\"");
            assert_eq!(pattern, error);
        }
        assert_eq!(error_pattern("unpaired \" mark"), "unpaired \" mark");
        assert_eq!(error_pattern(""), "");
    }

    proptest! {
        #[test]
        fn any_text_has_a_short_pattern_without_digits_but_statuses(error in "\\PC{0,600}") {
            let pattern = error_pattern(&error);
            prop_assert!(pattern.chars().count() <= PATTERN_CHARS_MAX);
            for number in pattern.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()) {
                prop_assert_eq!(number.len(), 3);
            }
        }
    }
}
