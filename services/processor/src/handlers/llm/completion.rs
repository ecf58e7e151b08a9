//! Parses chat completions: tolerant of differences between endpoints, strict about the answer.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use job::{Json, Usage, bounds::truncate};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::schema::Schema;
use crate::{
    handler::Outcome,
    handlers::answer::{count, read_object, without_bom},
};

/// Bytes of an endpoint's answer that an error shows.
const SHOWN_BYTES_MAX: usize = 512;

/// The members of an object, as they are written.
type Members<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

/// What a model answered.
struct Completion<'a> {
    usage: Usage,
    error: Option<Problem>,
    choice: Option<Choice<'a>>,
}

/// The first choice of an answer.
struct Choice<'a> {
    text: String,
    refusal: Option<String>,
    finish_reason: Cow<'a, str>,
}

/// An error that an endpoint reports in its answer.
struct Problem {
    text: String,
    /// Its code, if it is an HTTP status.
    code: String,
}

impl Problem {
    fn read(value: &RawValue) -> Option<Self> {
        let value: Value = serde_json::from_str(value.get()).ok()?;
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        match &value {
            Value::Null | Value::Bool(false) => None,
            Value::String(text) if text.is_empty() => None,
            Value::Object(members) => {
                let member = |name: &str| members.get(name).and_then(text);
                let message = member("message").unwrap_or_else(|| value.to_string());
                let code = ["status", "code", "type"].into_iter().find_map(member);
                Some(Self { text: message, code: code.unwrap_or_default() })
            }
            _ => {
                let message = text(&value).unwrap_or_else(|| value.to_string());
                Some(Self { text: message, code: String::new() })
            }
        }
    }

    /// What it means: some problems pass by waiting, some by trying again, some never.
    fn outcome(self, after: Option<Duration>, usage: Usage) -> Outcome {
        let error = format!("the endpoint answered with an error: {}", shown(&self.text));
        let has = |words: &[&str]| {
            let said = format!("{} {}", self.code, self.text).to_lowercase();
            words.iter().any(|word| said.contains(word))
        };
        let status = self.code.parse::<u16>().ok();
        if matches!(status, Some(408 | 425 | 429 | 529))
            || (status.is_none() && has(&["rate limit", "rate_limit", "overloaded", "too many"]))
        {
            return Outcome::Defer { error, after, usage };
        }
        match status {
            Some(400..=499) => Outcome::Reject { error, usage },
            _ => Outcome::Retry { error, after, usage },
        }
    }
}

/// The outcome of a request that was answered with `body`; `images` is the number that the job
/// sent.
pub(super) fn outcome(
    body: &[u8],
    schema: Option<&Schema>,
    images: u64,
    after: Option<Duration>,
) -> Outcome {
    let body = without_bom(body);
    let Some(completion) = read(body, images) else {
        let said = String::from_utf8_lossy(body);
        let error = format!("the answer is not a chat completion: {}", shown(said.trim()));
        return Outcome::retry(error);
    };
    let Completion { usage, error, choice } = completion;
    if let Some(problem) = error {
        return problem.outcome(after, usage);
    }
    let Some(choice) = choice else {
        let said = String::from_utf8_lossy(body);
        let error = format!("the answer has no choice: {}", shown(said.trim()));
        return Outcome::Retry { error, after: None, usage };
    };
    if let Some(refusal) = choice.refusal {
        let error = format!("the model refused: {}", shown(&refusal));
        return Outcome::Reject { error, usage };
    }
    let reason = &*choice.finish_reason;
    if choice.text.trim().is_empty() {
        let error = || format!("the model returned no content: finish_reason is {reason}");
        match reason {
            "content_filter" => return Outcome::Reject { error: error(), usage },
            "length" => {
                let error = format!("{}, the token limit", error());
                return Outcome::Retry { error, after: None, usage };
            }
            "error" | "tool_calls" | "function_call" => {
                return Outcome::Retry { error: error(), after: None, usage };
            }
            _ => {}
        }
    }
    match result(&choice.text, schema) {
        Ok(result) => Outcome::Done { result: Some(result), usage },
        Err(why) => {
            let error = format!("the model's answer (finish_reason {reason}) {why}");
            Outcome::Retry { error, after: None, usage }
        }
    }
}

/// The result that a text is; why it is none if it does not follow the schema.
fn result(text: &str, schema: Option<&Schema>) -> Result<Json, String> {
    let Some(schema) = schema else {
        return Json::of(text).map_err(|error| format!("cannot be written as JSON: {error}"));
    };
    let json = without_fence(text);
    let result: Json = serde_json::from_str(json)
        .map_err(|error| format!("is not JSON: {error}: {}", shown(text)))?;
    schema.check(&result)?;
    Ok(result)
}

/// The inside of a text that is one markdown code block.
fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    match inside.and_then(|inside| inside.split_once('\n')) {
        // The rest of the first line names the language.
        Some((language, inside)) if !language.contains('{') => inside.trim(),
        _ => text,
    }
}

/// The beginning of an endpoint's answer.
fn shown(text: &str) -> String {
    truncate(text, SHOWN_BYTES_MAX)
}

fn read(body: &[u8], images: u64) -> Option<Completion<'_>> {
    let members: Members<'_> = read_object(body).ok()?;
    let usage = members.get("usage").map(|usage| usage.get().as_bytes());
    let usage: Members<'_> = usage.and_then(|usage| read_object(usage).ok()).unwrap_or_default();
    let tokens = |names: [&str; 2]| {
        let named = names.into_iter().find_map(|name| usage.get(name).copied());
        count(named)
    };
    let usage = Usage {
        input_tokens: tokens(["prompt_tokens", "input_tokens"]),
        output_tokens: tokens(["completion_tokens", "output_tokens"]),
        images,
        model: members.get("model").and_then(|model| serde_json::from_str(model.get()).ok()),
    };
    let choices = members.get("choices").and_then(|choices| {
        serde_json::from_str::<Vec<&RawValue>>(choices.get()).ok()?.first().copied()
    });
    let choice: Members<'_> =
        choices.and_then(|choice| read_object(choice.get().as_bytes()).ok()).unwrap_or_default();
    let error = members.get("error").or(choice.get("error"));
    let error = error.and_then(|error| Problem::read(error));
    let choice = choices.map(|_| read_choice(&choice));
    Some(Completion { usage, error, choice })
}

fn read_choice<'a>(choice: &Members<'a>) -> Choice<'a> {
    let message = choice.get("message").map(|message| message.get().as_bytes());
    let message: Members<'_> =
        message.and_then(|message| read_object(message).ok()).unwrap_or_default();
    let text = |value: Option<&&RawValue>| {
        value.and_then(|value| serde_json::from_str::<String>(value.get()).ok())
    };
    let reason = choice
        .get("finish_reason")
        .and_then(|reason| serde_json::from_str::<Cow<'a, str>>(reason.get()).ok());
    Choice {
        text: message.get("content").map(|content| content_text(content)).unwrap_or_default(),
        refusal: text(message.get("refusal")).filter(|refusal| !refusal.trim().is_empty()),
        finish_reason: reason.unwrap_or(Cow::Borrowed("unknown")),
    }
}

/// The text of a content: a string, or a list of parts of which some are text.
fn content_text(content: &RawValue) -> String {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        text: Option<String>,
    }
    if let Ok(text) = serde_json::from_str(content.get()) {
        return text;
    }
    let parts: Vec<&RawValue> = serde_json::from_str(content.get()).unwrap_or_default();
    let parts = parts.iter().filter_map(|part| read_object::<Part>(part.get().as_bytes()).ok());
    parts.filter_map(|part| part.text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let schema = r#"{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}"#;
        Schema::compile(&serde_json::from_str(schema).expect("it is JSON")).expect("it is a schema")
    }

    /// An answer with this content and finish reason, both as JSON.
    fn answer(message: &str, reason: &str) -> String {
        format!(
            r#"{{"model":"m","choices":[{{"message":{message},"finish_reason":{reason}}}],"usage":{{"prompt_tokens":10,"completion_tokens":3}}}}"#
        )
    }

    fn done(body: &str, schema: Option<&Schema>) -> (String, u64, u64) {
        match outcome(body.as_bytes(), schema, 0, None) {
            Outcome::Done { result: Some(result), usage } => {
                (result.get().to_owned(), usage.input_tokens, usage.output_tokens)
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_good_answer_is_never_thrown_away_for_what_is_beside_it() {
        for (usage, counted) in [
            ("null", 0),
            (r#"{"completion_tokens":null,"prompt_tokens":12.0}"#, 12),
            (r#"{"prompt_tokens":"12","completion_tokens":-1}"#, 12),
            ("[12,3]", 0),
            ("7", 0),
        ] {
            let body = format!(
                r#"{{"choices":[{{"message":{{"content":"hello"}}}}],"usage":{usage},"error":null}}"#
            );
            let (result, input, output) = done(&body, None);
            assert_eq!(result, "\"hello\"", "{body}");
            assert_eq!((input, output), (counted, 0), "{usage}");
        }
        for message in [
            r#"{"content":"hello","refusal":""}"#,
            r#"{"content":"hello","refusal":null}"#,
            r#"{"content":[{"type":"text","text":"hel"},{"type":"image_url"},{"type":"text","text":"lo"}]}"#,
        ] {
            assert_eq!(done(&answer(message, "\"stop\""), None), ("\"hello\"".into(), 10, 3));
        }
        let odd = r#"{"content":"\u0000 \ud83e\udd80 \u202e é"}"#;
        let (result, ..) = done(&answer(odd, "\"stop\""), None);
        let result: String = serde_json::from_str(&result).expect("it is a text");
        assert_eq!(result, "\0 \u{1f980} \u{202e} é");
    }

    #[test]
    fn an_answer_that_follows_its_schema_is_taken_as_it_was_written() {
        let schema = schema();
        for (content, result) in [
            (r#""{\"a\":1,\"z\":1.10}""#, r#"{"a":1,"z":1.10}"#),
            (r#""```json\n{\"a\": 1}\n```""#, r#"{"a": 1}"#),
            (r#""```\n{\"a\":1}\n```\n""#, r#"{"a":1}"#),
        ] {
            let body = answer(&format!(r#"{{"content":{content}}}"#), "\"stop\"");
            assert_eq!(done(&body, Some(&schema)).0, result);
        }
    }

    #[test]
    fn a_bad_answer_fails_with_what_was_said() {
        let schema = schema();
        let said = |message: &str, reason: &str| answer(message, reason);
        for (body, schema, names, kind) in [
            (said(r#"{"content":"{\"b\":\"x\"}"}"#, "\"stop\""), Some(&schema), "a", "retry"),
            (said(r#"{"content":"no JSON"}"#, "\"stop\""), Some(&schema), "no JSON", "retry"),
            (said(r#"{"content":null}"#, "\"length\""), None, "token limit", "retry"),
            (said(r#"{"content":""}"#, "\"content_filter\""), None, "content_filter", "reject"),
            (said(r#"{"content":null}"#, "\"content_filter\""), None, "content_filter", "reject"),
            (said(r#"{"content":null}"#, "\"tool_calls\""), None, "tool_calls", "retry"),
            (said(r#"{"content":null}"#, "\"error\""), None, "error", "retry"),
            (
                said(r#"{"content":"x","refusal":"I cannot"}"#, "\"stop\""),
                None,
                "I cannot",
                "reject",
            ),
            (
                r#"{"error":{"message":"does not support image input","code":404}}"#.into(),
                None,
                "support image input",
                "reject",
            ),
            (
                r#"{"error":{"message":"Rate limit exceeded","code":429}}"#.into(),
                None,
                "Rate limit",
                "defer",
            ),
            (
                r#"{"error":{"message":"Overloaded","type":"overloaded_error"}}"#.into(),
                None,
                "Overloaded",
                "defer",
            ),
            (r#"{"error":"upstream broke"}"#.into(), None, "upstream broke", "retry"),
            (
                r#"{"choices":[{"error":{"message":"provider died","code":502}}]}"#.into(),
                None,
                "provider died",
                "retry",
            ),
            (r#"{"choices":[]}"#.into(), None, "no choice", "retry"),
            ("<html>login</html>".into(), None, "login", "retry"),
            ("data: {}\n\ndata: [DONE]".into(), None, "data:", "retry"),
            ("[]".into(), None, "not a chat completion", "retry"),
        ] {
            let (error, found) = match outcome(body.as_bytes(), schema, 0, None) {
                Outcome::Retry { error, .. } => (error, "retry"),
                Outcome::Reject { error, .. } => (error, "reject"),
                Outcome::Defer { error, .. } => (error, "defer"),
                Outcome::Done { .. } => panic!("{body} is done"),
            };
            assert!(error.contains(names), "{body}: {error}");
            assert_eq!(found, kind, "{body}: {error}");
        }
    }
}
