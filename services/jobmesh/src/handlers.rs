//! The handlers of this binary, and which of them runs which kind of work.

use anyhow::{Context, bail};
use job::Kind;
use processor::{
    Registry,
    handlers::{Http, Noop, Tokenize},
};

/// Settings of the processor of this binary.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    #[command(flatten)]
    pub processor: processor::Config,
    /// Which handler runs which kind of work: process_batch=tokenize, process_redo=http, ...
    #[arg(long = "handler", env = "JOBMESH_HANDLERS", value_delimiter = ',')]
    handlers: Vec<String>,
    /// Where the handler `http` posts jobs to.
    #[arg(long, env = "JOBMESH_HTTP_URL")]
    http_url: Option<String>,
}

impl Config {
    /// The registry that the settings name: `tokenize` for all kinds, but where they say otherwise.
    pub fn registry(&self) -> anyhow::Result<Registry> {
        let mut registry = Registry::new().named("tokenize", Tokenize).named("noop", Noop);
        if let Some(url) = &self.http_url {
            registry = registry.named("http", Http::new(url)?);
        }
        for kind in Kind::ALL {
            registry = registry.with(kind, Tokenize);
        }
        for setting in self.handlers.iter().filter(|setting| !setting.is_empty()) {
            let named = setting.split_once('=');
            let (kind, handler) =
                named.with_context(|| format!("{setting:?} is not kind=handler"))?;
            let found = Kind::ALL.into_iter().find(|known| known.name() == kind);
            let kind = found.with_context(|| {
                format!("{kind:?} is no kind of work; known are process_batch and process_redo")
            })?;
            registry = match handler {
                "tokenize" => registry.with(kind, Tokenize),
                "noop" => registry.with(kind, Noop),
                "http" => {
                    let url = self.http_url.as_deref();
                    registry.with(kind, Http::new(url.context("handler http needs --http-url")?)?)
                }
                other => bail!("{other:?} is no handler; known are tokenize, http and noop"),
            };
        }
        Ok(registry)
    }
}
