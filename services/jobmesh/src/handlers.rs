//! The handlers of this binary, and which of them runs which kind of work.

use std::path::PathBuf;

use anyhow::Context;
use job::{JobType, MaxTokensField};
use nats::access::Secret;
use processor::{
    Registry,
    handlers::{Command, Endpoint, Http, Llm, Noop, Tokenize},
};

/// Settings of the processor of this binary.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    #[command(flatten)]
    pub processor: processor::Config,
    #[command(flatten)]
    pub webhooks: processor::Webhooks,
    /// The types of jobs that this processor takes: all if not set. A type of --handler must be one of them.
    #[arg(long = "type", env = "JOBMESH_TYPES", value_delimiter = ',', value_enum)]
    types: Vec<JobTypeName>,
    /// Which handler runs which kind of work: process_batch=tokenize,process_redo=http
    #[arg(long = "handler", env = "JOBMESH_HANDLERS", value_delimiter = ',')]
    handlers: Vec<String>,
    /// The URL to which the handler `http` posts jobs.
    #[arg(long, env = "JOBMESH_HTTP_URL", hide_env_values = true)]
    http_url: Option<Secret>,
    /// What the handler `command` runs for each job, by /bin/sh.
    #[arg(long, env = "JOBMESH_COMMAND", hide_env_values = true)]
    command: Option<Secret>,
    /// Names of variables that the programs of `command` get in addition to the usual ones (PATH,
    /// HOME, LANG and so on).
    #[arg(long, env = "JOBMESH_COMMAND_ENV", value_delimiter = ',')]
    command_env: Vec<String>,
    /// The endpoint that the handler `llm` asks, such as <https://api.openai.com/v1>.
    #[arg(long, env = "JOBMESH_LLM_URL", hide_env_values = true)]
    llm_url: Option<Secret>,
    /// A file with the key of that endpoint, if it is not in JOBMESH_LLM_KEY.
    #[arg(long, env = "JOBMESH_LLM_KEY_FILE")]
    llm_key_file: Option<PathBuf>,
    /// The model that `llm` asks for projects that name none.
    #[arg(long, env = "JOBMESH_LLM_MODEL")]
    llm_model: Option<String>,
    /// What the endpoint of `llm` calls the bound on an answer's tokens.
    #[arg(
        long,
        env = "JOBMESH_LLM_MAX_TOKENS_FIELD",
        value_enum,
        default_value = "max_completion_tokens"
    )]
    llm_max_tokens_field: TokensField,
    /// True if the images of jobs may be on private networks and on this machine. Clients that enqueue jobs can then make
    /// the endpoint of `llm` fetch everything that it can reach.
    #[arg(long, env = "JOBMESH_LLM_PRIVATE_IMAGES")]
    llm_private_images: bool,
}

/// The types of jobs, as arguments.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum JobTypeName {
    /// Jobs of enqueue.
    ProcessBatch,
    /// Jobs of redo.
    ProcessRedo,
}

impl JobTypeName {
    /// The type.
    pub fn job_type(self) -> JobType {
        match self {
            Self::ProcessBatch => JobType::ProcessBatch,
            Self::ProcessRedo => JobType::ProcessRedo,
        }
    }
}

/// The name of the bound on an answer's tokens in requests.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum TokensField {
    MaxCompletionTokens,
    MaxTokens,
}

impl From<TokensField> for MaxTokensField {
    fn from(field: TokensField) -> Self {
        match field {
            TokensField::MaxCompletionTokens => Self::MaxCompletionTokens,
            TokensField::MaxTokens => Self::MaxTokens,
        }
    }
}

/// The variable with the key of the language model: in no argument, where others could read it.
const LLM_KEY: &str = "JOBMESH_LLM_KEY";
/// The handler of all kinds of work that no setting gives another.
const DEFAULT: &str = "tokenize";

/// What a handler needs that is not set.
fn needs(name: &str) -> &'static str {
    match name {
        "http" => "handler http needs JOBMESH_HTTP_URL (or --http-url)",
        "command" => "handler command needs JOBMESH_COMMAND (or --command)",
        "llm" => "handler llm needs JOBMESH_LLM_URL (or --llm-url)",
        _ => "known handlers are tokenize, noop, http, command and llm",
    }
}

impl Config {
    /// The registry from the settings: `tokenize` for all job types, unless they name another
    /// handler.
    pub fn registry(&self) -> anyhow::Result<Registry> {
        let mut registry = Registry::new().named("tokenize", Tokenize).named("noop", Noop);
        let result_bytes_max = self.processor.result_bytes_max();
        if let Some(url) = &self.http_url {
            registry = registry.named("http", Http::new(url.reveal(), result_bytes_max)?);
        }
        if let Some(line) = &self.command {
            let command = Command::new(line.reveal(), result_bytes_max);
            registry = registry.named("command", command.with_variables(&self.command_env));
        }
        if let Some(url) = &self.llm_url {
            let key = service::secret::read(LLM_KEY, self.llm_key_file.as_deref())?;
            let endpoint = Endpoint {
                url: url.reveal(),
                key: key.as_ref().map(Secret::reveal),
                model: self.llm_model.as_deref(),
                max_tokens_field: self.llm_max_tokens_field.into(),
                result_bytes_max,
                private_images: self.llm_private_images,
            };
            registry = registry.named("llm", Llm::new(&endpoint)?);
        }
        let mut types: Vec<JobType> = self.types.iter().map(|name| name.job_type()).collect();
        if types.is_empty() {
            types = JobType::ALL.into();
        }
        for job_type in types.iter().copied() {
            registry = registry.also(job_type, DEFAULT).context("the default handler is there")?;
        }
        for setting in self.handlers.iter().filter(|setting| !setting.is_empty()) {
            let named = setting.split_once('=');
            let (job_type, name) =
                named.with_context(|| format!("{setting:?} is not kind=handler"))?;
            let found = JobType::ALL.into_iter().find(|known| known.name() == job_type);
            let job_type = found.with_context(|| {
                format!("{job_type:?} is not a job type; known are process_batch and process_redo")
            })?;
            anyhow::ensure!(
                types.contains(&job_type),
                "--handler {setting} is for a type that --type leaves out"
            );
            let also = registry.also(job_type, name);
            registry = also.with_context(|| format!("no handler {name:?}: {}", needs(name)))?;
        }
        Ok(registry)
    }
}
