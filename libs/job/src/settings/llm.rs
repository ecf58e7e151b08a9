//! The options of the handler `llm`, checked when they are set and read when a job runs.

use serde::{Deserialize, Serialize};

use crate::{Json, template::Template};

/// The name of the handler.
pub const LLM: &str = "llm";

/// What a project tells the handler `llm`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LlmOptions {
    /// The model; the processor's default if absent.
    pub model: Option<String>,
    /// The template of the system message.
    pub system: Option<String>,
    /// A template of what it is asked; all of the data if absent.
    pub prompt: Option<String>,
    /// The JSON schema that the result must follow.
    pub schema: Option<Json>,
    /// The most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// The name of that bound in requests; the processor's default if absent.
    pub max_tokens_field: Option<MaxTokensField>,
    /// As the endpoint takes it.
    pub temperature: Option<f64>,
}

/// The name that an endpoint has for the bound on an answer's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// OpenAI's own, since 2024.
    #[default]
    MaxCompletionTokens,
    /// That of older and many other endpoints.
    MaxTokens,
}

impl LlmOptions {
    /// Reads options; none are as good as empty ones.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn read(options: Option<&Json>) -> Result<Self, String> {
        let Some(options) = options else { return Ok(Self::default()) };
        let read: Self = serde_json::from_str(options.get()).map_err(|error| {
            let text = error.to_string();
            format!("options: {}", text.split(" at line ").next().unwrap_or(&text))
        })?;
        if let Some(schema) = &read.schema
            && !schema.get().starts_with('{')
        {
            return Err("options.schema must be a JSON schema, which is an object".to_owned());
        }
        read.prompt()?;
        read.system()?;
        Ok(read)
    }

    /// The template of the question.
    ///
    /// # Errors
    /// If it cannot be parsed.
    pub fn prompt(&self) -> Result<Template, String> {
        Template::parse("options.prompt", self.prompt.as_deref().unwrap_or("{{}}"))
    }

    /// The template of the system message, if there is one.
    ///
    /// # Errors
    /// If it cannot be parsed.
    pub fn system(&self) -> Result<Option<Template>, String> {
        self.system.as_deref().map(|text| Template::parse("options.system", text)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_mean_nothing_are_refused_by_their_field() {
        for (options, names) in [
            (r#"{"promt":"x"}"#, "promt"),
            (r#"{"prompt":"{{x"}"#, "options.prompt"),
            (r#"{"system":"{{x"}"#, "options.system"),
            (r#"{"schema":[]}"#, "options.schema"),
            (r#"{"maxTokens":"many"}"#, "options"),
        ] {
            let json: Json = serde_json::from_str(options).expect("it is JSON");
            let error = LlmOptions::read(Some(&json)).expect_err("it means nothing");
            assert!(error.contains(names), "{options}: {error}");
        }
        assert_eq!(LlmOptions::read(None), Ok(LlmOptions::default()));
    }
}
