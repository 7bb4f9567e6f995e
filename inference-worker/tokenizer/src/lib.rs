//! Text to token ids and back, and conversations to prompts, as the model's own file describes them.
//!
//! [`Tokenizer`] reads the vocabulary from GGUF metadata. [`ChatTemplate`] renders messages with the model's
//! template and tokenises the outcome such that nothing in a message can pass for a control token.

mod bpe;
mod byte_alphabet;
pub mod chat;
mod error;
mod split;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatError, ChatInput, ChatTemplate, RenderedPrompt};
pub use error::TokenizerError;
pub use tokenizer::{SpecialTokens, Tokenizer};
