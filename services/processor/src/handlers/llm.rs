//! `llm`: asks a language model, by any chat endpoint that speaks as OpenAI's does
//! (`POST <url>/chat/completions`; source: OpenAI API reference, Chat).
//!
//! The project's `options` say what to ask, the job's data what about. The key comes from the
//! environment; it goes to the endpoint and nowhere else.

mod completion;
mod schema;

use std::sync::Arc;

use anyhow::Context as _;
use job::{Json, LlmOptions, MaxTokensField, json::object};
use nats::wire::Work;
use reqwest::{
    Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use serde::{Deserialize, Serialize};

use super::{client, public};
use crate::handler::{Context, Handler, Outcome};
use schema::Schema;

/// How much larger than the largest result an answer may be, in bytes: what is around the text.
const ANSWER_MARGIN_BYTES: usize = 1024 * 1024;
/// The most images of one job.
const IMAGES_MAX: usize = 100;
/// The largest prompt, in bytes.
const PROMPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Asks a model.
#[derive(Clone, Debug)]
pub struct Llm {
    client: reqwest::Client,
    url: Url,
    key: Option<HeaderValue>,
    model: Option<String>,
    max_tokens_field: MaxTokensField,
    answer_bytes_max: usize,
    private_images: bool,
}

/// How a processor reaches its language model.
#[derive(Clone, Debug, Default)]
pub struct Endpoint<'a> {
    /// The address, such as `https://api.openai.com/v1`. A query stays behind the path.
    pub url: &'a str,
    /// The key that it takes.
    pub key: Option<&'a str>,
    /// The model of projects that name none.
    pub model: Option<&'a str>,
    /// What it calls the bound on an answer's tokens, for projects that do not say.
    pub max_tokens_field: MaxTokensField,
    /// The largest result of a job, in bytes.
    pub result_bytes_max: usize,
    /// Whether the URLs of images may be on this machine and on private networks.
    pub private_images: bool,
}

/// The body of a request.
#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(String),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: String },
    ImageUrl { image_url: ImageUrl<'a> },
}

#[derive(Serialize)]
struct ImageUrl<'a> {
    url: &'a str,
}

#[derive(Serialize)]
struct ResponseFormat<'a> {
    r#type: &'static str,
    json_schema: NamedSchema<'a>,
}

#[derive(Serialize)]
struct NamedSchema<'a> {
    name: &'static str,
    strict: bool,
    schema: &'a Json,
}

/// A question that is ready to be asked.
struct Prepared {
    body: Vec<u8>,
    schema: Option<Schema>,
    images: u64,
}

impl Llm {
    /// Asks this endpoint.
    ///
    /// # Errors
    /// If the URL is none of `http` or `https`, or the key cannot be in a header.
    pub fn new(endpoint: &Endpoint<'_>) -> anyhow::Result<Self> {
        let mut url = client::url(endpoint.url)?;
        // Only a URL without a host has no segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["chat", "completions"]);
        }
        let key = endpoint.key.map(|key| {
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
            model: endpoint.model.map(str::to_owned),
            max_tokens_field: endpoint.max_tokens_field,
            answer_bytes_max: endpoint.result_bytes_max + ANSWER_MARGIN_BYTES,
            private_images: endpoint.private_images,
        })
    }

    /// Puts the job's data into what the project asks.
    fn prepare(&self, work: &Work) -> Result<Prepared, String> {
        let options = LlmOptions::read(work.options.as_ref())
            .map_err(|error| format!("project {:?}: {error}", work.project))?;
        let model = options.model.as_ref().or(self.model.as_ref());
        let model = model.ok_or(
            "no model is named: set options.model of the project, or the processor's default",
        )?;
        let prompt = options.prompt()?.fill(&work.data, PROMPT_BYTES_MAX);
        let prompt = prompt.map_err(|error| format!("options.prompt: {error}"))?;
        let images = images(&work.data, self.private_images)?;
        let mut messages = Vec::new();
        if let Some(system) = options.system()? {
            let system = system.fill(&work.data, PROMPT_BYTES_MAX);
            let system = system.map_err(|error| format!("options.system: {error}"))?;
            messages.push(Message { role: "system", content: Content::Text(system) });
        }
        messages.push(Message { role: "user", content: content(prompt, &images) });
        let field = options.max_tokens_field.unwrap_or(self.max_tokens_field);
        let max = |of| options.max_tokens.filter(|_| field == of);
        let question = Question {
            model,
            messages,
            response_format: options.schema.as_ref().map(|schema| ResponseFormat {
                r#type: "json_schema",
                json_schema: NamedSchema { name: "result", strict: true, schema },
            }),
            max_completion_tokens: max(MaxTokensField::MaxCompletionTokens),
            max_tokens: max(MaxTokensField::MaxTokens),
            temperature: options.temperature,
        };
        let body = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
        let schema = options.schema.as_ref().map(Schema::compile).transpose()?;
        Ok(Prepared { body, schema, images: images.len() as u64 })
    }

    async fn ask(&self, question: Prepared) -> Outcome {
        let mut request = self.client.post(self.url.clone());
        request = request.header(CONTENT_TYPE, "application/json").body(question.body);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let answer = match client::answer(request, self.answer_bytes_max).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::retry(client::could_not_ask(&self.url, error)),
        };
        if !answer.status.is_success() {
            return answer.failed();
        }
        // Reading and checking a long answer takes longer than other tasks of the thread may wait.
        let read = move || {
            completion::outcome(
                &answer.body,
                question.schema.as_ref(),
                question.images,
                answer.later,
            )
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|error| {
            Outcome::retry(format!("the answer could not be read: {error}"))
        })
    }
}

impl Handler for Llm {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let llm = self.clone();
        let prepared = tokio::task::spawn_blocking(move || llm.prepare(&work)).await;
        match prepared {
            Ok(Ok(question)) => self.ask(question).await,
            Ok(Err(error)) => Outcome::reject(error),
            Err(error) => Outcome::retry(format!("the question could not be prepared: {error}")),
        }
    }
}

/// A text, and the images that belong to it.
fn content(prompt: String, images: &[String]) -> Content<'_> {
    if images.is_empty() {
        return Content::Text(prompt);
    }
    let parts = images.iter().map(|url| Part::ImageUrl { image_url: ImageUrl { url } });
    Content::Parts(std::iter::once(Part::Text { text: prompt }).chain(parts).collect())
}

/// The images of a job: `data.images`, URLs of `http`, `https` or `data`. The model's server fetches them, and may be
/// one that reaches private networks.
fn images(data: &Json, private: bool) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        images: Option<Vec<String>>,
    }
    let malformed =
        || "data.images must be a list of URLs of images: https:, http: or data:image/".to_owned();
    let mut json = serde_json::Deserializer::from_str(data.get());
    let read: Data = object(&mut json).map_err(|_| malformed())?;
    let mut images = read.images.unwrap_or_default();
    let is_image =
        |url: &String| ["https://", "http://", "data:image/"].iter().any(|it| url.starts_with(it));
    if !images.iter().all(is_image) {
        return Err(malformed());
    }
    for (n, image) in images.iter_mut().enumerate().filter(|(_, image)| image.starts_with("http")) {
        let url = client::url(image).map_err(|error| format!("data.images[{n}]: {error:#}"))?;
        // Other parsers could find another host in such a URL.
        if image.contains('\\') || !url.username().is_empty() || url.password().is_some() {
            return Err(format!("data.images[{n}] must be a URL without a user and without \\"));
        }
        if !private && !public::may_be_public(&url) {
            let host = url.host_str().unwrap_or_default();
            return Err(format!(
                "data.images[{n}]: {host} is not on the public internet; an operator allows it with \
                 JOBMESH_LLM_PRIVATE_IMAGES=true"
            ));
        }
        // The model's server fetches what was checked.
        *image = url.into();
    }
    if images.len() > IMAGES_MAX {
        return Err(format!(
            "data.images has {} images, at most {IMAGES_MAX} are sent",
            images.len()
        ));
    }
    Ok(images)
}

/// Reads an answer, for fuzz/.
#[cfg(fuzzing)]
pub(super) fn try_read(data: &[u8]) {
    let _ = completion::outcome(data, None, 0, None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::test_work;

    fn prepared(options: &str, data: &str, field: MaxTokensField) -> Result<String, String> {
        let endpoint = Endpoint {
            url: "http://a/v1",
            model: Some("m"),
            max_tokens_field: field,
            ..Endpoint::default()
        };
        let llm = Llm::new(&endpoint).expect("it is an endpoint");
        let mut work = test_work(data);
        work.options = Some(serde_json::from_str(options).expect("it is JSON"));
        let prepared = llm.prepare(&work)?;
        Ok(String::from_utf8(prepared.body).expect("it is UTF-8"))
    }

    #[test]
    fn a_question_is_asked_as_it_was_written() {
        let default = MaxTokensField::default();
        let schema = r#"{"type":"object","properties":{"z":{"maximum":1.10},"a":{}}}"#;
        let options = format!(r#"{{"prompt":"sum {{{{}}}}","schema":{schema},"maxTokens":7}}"#);
        let body = prepared(&options, r#"{"z":1.10,"a":12345678901234567890123}"#, default);
        let body = body.expect("it is prepared");
        assert!(body.contains(schema), "{body}");
        assert!(body.contains(r#"sum {\"z\":1.10,\"a\":12345678901234567890123}"#), "{body}");
        assert!(body.contains(r#""max_completion_tokens":7"#), "{body}");
        let body = prepared(r#"{"maxTokens":7}"#, "{}", MaxTokensField::MaxTokens);
        assert!(body.is_ok_and(|body| body.contains(r#""max_tokens":7"#)));
        let options = r#"{"maxTokens":7,"maxTokensField":"max_tokens"}"#;
        let body = prepared(options, "{}", default).expect("it is prepared");
        assert!(body.contains(r#""max_tokens":7"#) && !body.contains("completion"), "{body}");
    }

    #[test]
    fn a_query_stays_behind_the_path() {
        for (url, expected) in [
            ("https://a/v1", "https://a/v1/chat/completions"),
            ("https://a/v1/", "https://a/v1/chat/completions"),
            (
                "https://a/openai/deployments/gpt-4o?api-version=2024-10-21",
                "https://a/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
            ),
        ] {
            let llm = Llm::new(&Endpoint { url, ..Endpoint::default() }).expect("it is one");
            assert_eq!(llm.url.as_str(), expected);
        }
    }

    #[test]
    fn images_are_urls() {
        let images = |data: &str| images(&serde_json::from_str(data).expect("it is JSON"), false);
        let urls = r#"{"images":["https://a.example/b.png","data:image/png;base64,AA=="]}"#;
        assert_eq!(images(urls).map(|urls| urls.len()), Ok(2));
        for none in ["{}", r#"{"images":null}"#, r#"{"images":[]}"#] {
            assert_eq!(images(none), Ok(Vec::new()), "{none}");
        }
        for odd in [
            r#"{"images":["file:///etc/passwd"]}"#,
            r#"{"images":[3]}"#,
            r#"{"images":"x"}"#,
            r#"{"images":["http://[nowhere"]}"#,
        ] {
            assert!(images(odd).is_err(), "{odd}");
        }
        for private in [
            "127.1",
            "169.254.169.254",
            "[::ffff:10.0.0.1]",
            "LocalHost.",
            "a.internal",
            "redis",
            "0x7f.1",
        ] {
            let data = format!(r#"{{"images":["https://a.example/","http://{private}/x"]}}"#);
            let error = images(&data).expect_err(private);
            assert!(error.starts_with("data.images[1]") && error.contains("public"), "{error}");
        }
        for odd in [r"http://a.example\\@10.0.0.1/", "http://u:p@a.example/", "http://u@a.example/"]
        {
            let error = images(&format!(r#"{{"images":["{odd}"]}}"#)).expect_err(odd);
            assert!(error.contains("without a user"), "{error}");
        }
    }
}
