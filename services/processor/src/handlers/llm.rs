//! `llm`: asks a language model, by any chat endpoint that speaks as OpenAI's does
//! (`POST <url>/chat/completions`; source: OpenAI API reference, Chat).
//!
//! What to ask comes from the project's `options`, what about from the job's data. The key comes
//! from the environment; it goes to the endpoint and nowhere else.

use std::sync::Arc;

use anyhow::Context as _;
use job::{Json, Spent};
use mesh::wire::Work;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client;
use crate::handler::{Context, Handler, Outcome};

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most images of one job.
const IMAGES_MAX: usize = 100;

/// Asks a model.
#[derive(Clone, Debug)]
pub struct Llm {
    client: reqwest::Client,
    url: reqwest::Url,
    key: Option<HeaderValue>,
    model: Option<String>,
}

/// What a project says in its `options`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Options {
    /// The model; the processor's default where absent.
    model: Option<String>,
    /// What the model is told first.
    system: Option<String>,
    /// What it is asked: `{{name}}` stands for the job's data under that name, `{{a.b}}` for what
    /// is below, `{{}}` for all of it.
    prompt: Option<String>,
    /// The JSON schema that the result is to follow.
    schema: Option<Json>,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    model: Option<job::Id>,
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Llm {
    /// Asks the endpoint below `url` (such as `https://api.openai.com/v1`) with `key`; projects
    /// that name no model ask `model`.
    ///
    /// # Errors
    /// Where the URL is none of `http` or `https`, or the key can be in no header.
    pub fn new(url: &str, key: Option<&str>, model: Option<&str>) -> anyhow::Result<Self> {
        let url = format!("{}/chat/completions", url.trim_end_matches('/'));
        let url = client::url(&url)?;
        let key = key.map(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                .ok()
                .context("the key of the language model has characters that no header takes")?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        Ok(Self {
            client: client::client()?,
            url,
            key: key.transpose()?,
            model: model.map(str::to_owned),
        })
    }

    async fn ask(&self, options: &Options, data: &Value) -> Result<Outcome, String> {
        let model = options.model.as_ref().or(self.model.as_ref());
        let model =
            model.ok_or("no model is named: set options.model, or the processor's default")?;
        let prompt = fill(options.prompt.as_deref().unwrap_or("{{}}"), data)?;
        let images = images(data)?;
        let mut messages = Vec::new();
        if let Some(system) = &options.system {
            messages.push(json!({ "role": "system", "content": fill(system, data)? }));
        }
        messages.push(json!({ "role": "user", "content": content(prompt, &images) }));
        let mut body = json!({ "model": model, "messages": messages });
        if let Some(schema) = &options.schema {
            let schema: Value =
                serde_json::from_str(schema.get()).map_err(|error| error.to_string())?;
            body["response_format"] = json!({
                "type": "json_schema",
                "json_schema": { "name": "result", "strict": true, "schema": schema },
            });
        }
        if let Some(max) = options.max_tokens {
            body["max_completion_tokens"] = max.into();
        }
        if let Some(temperature) = options.temperature {
            body["temperature"] = temperature.into();
        }
        let mut request = self.client.post(self.url.clone()).json(&body);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let answer = match client::answer(request, ANSWER_BYTES_MAX).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Outcome::retry(client::could_not_ask(&self.url, error))),
        };
        if !answer.status.is_success() {
            return Ok(answer.failed());
        }
        Ok(completed(&answer.body, options, images.len() as u64))
    }
}

impl Handler for Llm {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let options = work.options.as_ref().map_or("{}", |options| options.get());
        let options: Options = match serde_json::from_str(options) {
            Ok(options) => options,
            Err(error) => {
                return Outcome::reject(format!("options of project {:?}: {error}", work.project));
            }
        };
        let data: Value = serde_json::from_str(work.data.get()).unwrap_or_default();
        match self.ask(&options, &data).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::reject(error),
        }
    }
}

/// What a model said, within what it was asked for.
fn completed(body: &[u8], options: &Options, images: u64) -> Outcome {
    let completion: Completion = match serde_json::from_slice(body) {
        Ok(completion) => completion,
        Err(error) => return Outcome::retry(format!("the answer is no chat completion: {error}")),
    };
    let spent = Spent {
        input_tokens: completion.usage.prompt_tokens,
        output_tokens: completion.usage.completion_tokens,
        images,
        model: completion.model,
    };
    let Some(Choice { message, finish_reason }) = completion.choices.into_iter().next() else {
        return Outcome::Retry { error: "the model gave no choice".into(), after: None, spent };
    };
    if let Some(refusal) = message.refusal {
        return Outcome::Reject { error: format!("the model refused: {refusal}"), spent };
    }
    let text = message.content.unwrap_or_default();
    let result = if options.schema.is_some() {
        match serde_json::from_str::<Json>(&text) {
            Ok(result) => result,
            Err(error) => {
                let why = finish_reason.unwrap_or_default();
                let error = format!("the model's answer is no JSON ({why}): {error}");
                return Outcome::Retry { error, after: None, spent };
            }
        }
    } else {
        match Json::of(&text) {
            Ok(result) => result,
            Err(error) => return Outcome::Reject { error: error.to_string(), spent },
        }
    };
    Outcome::Done { result: Some(result), spent }
}

/// A text, and the images that belong to it.
fn content(prompt: String, images: &[String]) -> Value {
    if images.is_empty() {
        return prompt.into();
    }
    #[derive(Serialize)]
    struct Url<'a> {
        url: &'a str,
    }
    let text = json!({ "type": "text", "text": prompt });
    let parts = images.iter().map(|url| json!({ "type": "image_url", "image_url": Url { url } }));
    std::iter::once(text).chain(parts).collect()
}

/// The images of a job: `data.images`, URLs of `http`, `https` or `data`.
fn images(data: &Value) -> Result<Vec<String>, String> {
    let Some(images) = data.get("images") else { return Ok(Vec::new()) };
    let urls: Option<Vec<String>> = images
        .as_array()
        .map(|urls| urls.iter().filter_map(|url| url.as_str()).map(str::to_owned).collect());
    let known =
        |url: &String| ["https://", "http://", "data:image/"].iter().any(|it| url.starts_with(it));
    match urls {
        Some(urls)
            if Some(urls.len()) == images.as_array().map(Vec::len) && urls.iter().all(known) =>
        {
            if urls.len() > IMAGES_MAX {
                return Err(format!(
                    "data.images has {} images, at most {IMAGES_MAX} are sent",
                    urls.len()
                ));
            }
            Ok(urls)
        }
        _ => {
            Err("data.images must be a list of URLs of images: https:, http: or data:image/".into())
        }
    }
}

/// Puts the job's data into a template.
fn fill(template: &str, data: &Value) -> Result<String, String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{{") {
        let (name, behind) =
            behind.split_once("}}").ok_or("options.prompt has a {{ without its }}")?;
        text.push_str(before);
        let path = name.trim().split('.').filter(|part| !part.is_empty());
        let value = path.into_iter().try_fold(data, |value, part| match value {
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            value => value.get(part),
        });
        match value {
            Some(Value::String(value)) => text.push_str(value),
            Some(value) => text.push_str(&value.to_string()),
            None => {
                return Err(format!(
                    "the job's data has no {:?}, which the prompt names",
                    name.trim()
                ));
            }
        }
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_takes_what_it_names_from_the_data() {
        let data = json!({ "text": "hello", "page": { "no": 3 }, "list": ["a"] });
        let filled = fill("{{text}}, page {{ page.no }} {{list.0}}", &data);
        assert_eq!(filled.as_deref(), Ok("hello, page 3 a"));
        assert_eq!(fill("{{}}", &json!({"a":1})).as_deref(), Ok(r#"{"a":1}"#));
        assert!(fill("{{nothing}}", &data).is_err_and(|error| error.contains("nothing")));
        assert!(fill("{{text", &data).is_err());
    }

    #[test]
    fn images_are_urls() {
        let urls = json!({ "images": ["https://a/b.png", "data:image/png;base64,AA=="] });
        assert_eq!(images(&urls).map(|urls| urls.len()), Ok(2));
        for odd in [
            json!({ "images": ["file:///etc/passwd"] }),
            json!({ "images": [3] }),
            json!({ "images": "x" }),
        ] {
            assert!(images(&odd).is_err(), "{odd}");
        }
    }
}
