//! `tokenize`: counts the tokens of the job's data. It needs no set-up, and stands for both kinds
//! of work until an operator names another handler.

use std::sync::Arc;

use job::{Json, Usage};
use nats::wire::Work;

use crate::handler::{Context, Handler, Outcome};

/// Data longer than this, in bytes, is counted away from the threads that serve the network.
const INLINE_BYTES_MAX: usize = 16 * 1024;
/// The tokenizer: that of the models from GPT-4o on. Its time is linear in the text, whatever
/// the text; its vocabulary comes with its crate.
const MODEL: &str = "o200k_base";

/// Counts tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokenize;

impl Handler for Tokenize {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        let tokens = if work.data.get().len() <= INLINE_BYTES_MAX {
            count(work.data.get())
        } else {
            match tokio::task::spawn_blocking(move || count(work.data.get())).await {
                Ok(tokens) => tokens,
                Err(error) => {
                    return Outcome::retry(format!("tokens could not be counted: {error}"));
                }
            }
        };
        let result = Json::of(&serde_json::json!({ "tokens": tokens })).ok();
        let usage = Usage { input_tokens: tokens, model: Some(MODEL.into()), ..Usage::default() };
        Outcome::Done { result, usage }
    }
}

fn count(text: &str) -> u64 {
    bpe_openai::o200k_base().count(text) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_as_the_models_do_and_in_linear_time() {
        assert_eq!(count("hello world"), 2);
        assert_eq!(count(""), 0);
        let begun = std::time::Instant::now();
        assert!(count(&"a".repeat(256 * 1024)) > 1_000);
        assert!(begun.elapsed().as_secs() < 20, "hostile text must not hold a processor up");
    }
}
