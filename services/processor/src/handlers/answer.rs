//! What a server or a program of the operator's says came of a job.
//!
//! At this point the work is done, and perhaps paid for: an odd field counts as absent.

use std::time::Duration;

use job::{Json, Usage, json::object};
use serde::Deserialize;
use serde_json::value::RawValue;

/// `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m", "afterMs": 0}`, read.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub result: Option<Json>,
    pub usage: Usage,
    /// How long to wait before the job is tried again, if it is.
    pub after: Option<Duration>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    images: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    after_ms: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tokens<'a> {
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
}

/// Reads an answer; white space alone is one that says nothing.
///
/// # Errors
/// If it is no JSON object.
pub(super) fn read(body: &[u8]) -> Result<Answer, String> {
    let body = without_bom(body);
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Answer::default());
    }
    let fields: Fields<'_> =
        read_object(body).map_err(|error| format!("the answer is not a JSON object: {error}"))?;
    let tokens = fields.tokens.map(RawValue::get);
    let tokens: Tokens<'_> =
        tokens.and_then(|tokens| read_object(tokens.as_bytes()).ok()).unwrap_or_default();
    let usage = Usage {
        input_tokens: count(tokens.input),
        output_tokens: count(tokens.output),
        images: count(fields.images),
        model: fields.model.and_then(|model| serde_json::from_str(model.get()).ok()),
    };
    let result = fields.result.filter(|result| result.get() != "null");
    let after = fields.after_ms.map(|ms| Duration::from_millis(count(Some(ms))));
    Ok(Answer { result: result.map(|result| Json::from(result.to_owned())), usage, after })
}

/// Reads a JSON object, and nothing else, into a struct.
pub(super) fn read_object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = object(&mut json)?;
    json.end()?;
    Ok(read)
}

/// A text without the byte order mark that some programs put in front.
pub(super) fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// A count, however it is written: `12`, `12.0` and `"12"` are twelve; anything else counts as none.
pub(super) fn count(value: Option<&RawValue>) -> u64 {
    let Some(text) = value.map(RawValue::get) else { return 0 };
    let text = text.trim_matches('"');
    if let Ok(count) = text.parse() {
        return count;
    }
    match text.parse::<f64>() {
        // A negative number saturates at zero, one beyond the range at its end.
        Ok(count) if count.is_finite() => count as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_fields_count_as_absent() {
        for (body, result, tokens) in [
            ("\u{feff}{\"result\":3}", Some("3"), (0, 0)),
            (r#"{"result":3,"tokens":null}"#, Some("3"), (0, 0)),
            (r#"{"tokens":{"input":null,"output":2}}"#, None, (0, 2)),
            (r#"{"tokens":{"input":10.0,"output":"12"}}"#, None, (10, 12)),
            (r#"{"tokens":{"input":-1,"output":[]}}"#, None, (0, 0)),
            (r#"{"tokens":[1,2],"images":null,"model":null}"#, None, (0, 0)),
            (r#"{"result":null,"more":1}"#, None, (0, 0)),
            (
                r#"{"result":{"n":1.10,"a":12345678901234567890123}}"#,
                Some(r#"{"n":1.10,"a":12345678901234567890123}"#),
                (0, 0),
            ),
            (" \n", None, (0, 0)),
        ] {
            let answer = read(body.as_bytes()).expect("it is read");
            assert_eq!(answer.result.as_ref().map(Json::get), result, "{body}");
            let usage = answer.usage;
            assert_eq!((usage.input_tokens, usage.output_tokens), tokens, "{body}");
        }
    }

    #[test]
    fn only_an_object_is_an_answer() {
        for body in ["OK", "<html>", "null", "true", "[3]", "{} x", "{"] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
