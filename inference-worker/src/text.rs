//! What a worker needs of a tokenizer: prompts to ids, ids to bytes.

use std::collections::BTreeSet;

use tandem_worker_api::ChatPrompt;
use thiserror::Error;

/// A rendered and tokenised conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTokens {
    /// The prompt's ids.
    pub ids: Vec<u32>,
    /// Whether it ends inside a thinking block.
    pub opens_thinking: bool,
}

/// A prompt that can't be rendered; for the client.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct BadPrompt {
    /// What is wrong with it.
    pub message: String,
    /// The request's field, where one is to blame.
    pub param: &'static str,
}

/// Prompts to ids, ids to bytes.
pub trait Text: Send + Sync + 'static {
    /// How many ids there are.
    fn vocab_size(&self) -> usize;

    /// The ids that end a turn.
    fn end_ids(&self) -> BTreeSet<u32>;

    /// The ids of plain text, with what the model wants before any prompt.
    fn encode(&self, text: &str) -> Vec<u32>;

    /// The ids of a conversation, rendered by the model's template, which is told that the client asked at `asked_at`,
    /// in seconds since 1970.
    ///
    /// # Errors
    /// When the messages are not what the template expects.
    fn encode_chat(&self, chat: &ChatPrompt, asked_at: u64) -> Result<ChatTokens, BadPrompt>;

    /// What a token adds to the text: empty for unknown ids and for control tokens other than markers of thoughts and
    /// tool calls.
    fn bytes(&self, id: u32) -> Vec<u8>;
}
