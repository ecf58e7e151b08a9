//! What a server or a program of the operator's says came of a job.

use job::{Json, Spent};
use serde::Deserialize;

/// `{"result": any, "tokens": {"input": 1, "output": 2}, "images": 0, "model": "m"}`, read.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub result: Option<Json>,
    pub spent: Spent,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Read {
    result: Option<Json>,
    tokens: Tokens,
    images: u64,
    model: Option<job::Id>,
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "an object with input and output")]
struct Tokens {
    input: u64,
    output: u64,
}

/// Reads an answer; nothing but white space says nothing.
///
/// # Errors
/// Why it is not what is expected.
pub(super) fn read(body: &[u8]) -> Result<Answer, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Answer::default());
    }
    let read: Read = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is not what is expected: {error}"))?;
    let spent = Spent {
        input_tokens: read.tokens.input,
        output_tokens: read.tokens.output,
        images: read.images,
        model: read.model,
    };
    Ok(Answer { result: read.result, spent })
}
