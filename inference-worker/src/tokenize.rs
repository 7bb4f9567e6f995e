//! Shows what a model's tokenizer and template make of a text.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use tandem_engine::ModelFiles;
use tandem_engine::files::OpenError;
use tandem_worker_api::ChatPrompt;
use thiserror::Error;

use crate::model_text::{ModelText, TextError};
use crate::text::{BadPrompt, Text};

/// Most bytes that are read from standard input.
const MAX_INPUT: u64 = 64 << 20;

/// Arguments of `inference-worker tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The model's GGUF file; of several shards, the first
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// The text [default: standard input]
    text: Option<String>,
    /// Take the text for a user's message, and show the whole prompt
    #[arg(long)]
    chat: bool,
    /// Print ids only, on one line
    #[arg(long)]
    ids: bool,
}

/// Why there are no tokens.
#[derive(Debug, Error)]
pub enum TokenizeError {
    /// The model's file.
    #[error("the model can't be opened")]
    Open(#[from] OpenError),
    /// Its text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The template.
    #[error("the prompt can't be rendered")]
    Prompt(#[from] BadPrompt),
    /// Standard input.
    #[error("standard input can't be read")]
    Input(#[source] io::Error),
}

/// The tokens as lines for people, or as ids.
///
/// # Errors
/// When the model has no tokenizer that can be used, or the input can't be read.
pub fn run(args: &TokenizeArgs) -> Result<String, TokenizeError> {
    let files = ModelFiles::open(&args.model, "unverified")?;
    let text = ModelText::from_metadata(files.headers().metadata())?;
    let input = match &args.text {
        Some(input) => input.clone(),
        None => {
            let mut input = String::new();
            io::stdin().take(MAX_INPUT).read_to_string(&mut input).map_err(TokenizeError::Input)?;
            input
        }
    };
    let ids = if args.chat {
        let messages = serde_json::json!([{"role": "user", "content": input}]);
        let chat = ChatPrompt { messages_json: messages.to_string(), ..ChatPrompt::default() };
        text.encode_chat(&chat, 0)?.ids
    } else {
        text.encode(&input)
    };
    Ok(if args.ids {
        ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    } else {
        ids.iter().map(|&id| format!("{id:>7}  {:?}\n", text.name(id))).collect::<String>()
            + &format!("{} tokens", ids.len())
    })
}
