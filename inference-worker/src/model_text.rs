//! Text by the model's own tokenizer and template.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use tandem_gguf::Metadata;
use tandem_tokenizer::{ChatError, ChatInput, ChatTemplate, SpecialTokens, Tokenizer, TokenizerError};
use tandem_worker_api::ChatPrompt;
use thiserror::Error;

use crate::text::{BadPrompt, ChatTokens, Text};

/// A model file whose text can't be read or written.
#[derive(Debug, Error)]
pub enum TextError {
    /// Its vocabulary.
    #[error("the model's tokenizer can't be used")]
    Tokenizer(#[from] TokenizerError),
    /// Its template.
    #[error("the model's chat template can't be used")]
    Template(#[from] ChatError),
}

/// A model's tokenizer and template.
pub struct ModelText {
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
}

impl ModelText {
    /// Reads both from a file's metadata.
    ///
    /// # Errors
    /// When they are missing, or of a kind that is not supported.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TextError> {
        let tokenizer = Arc::new(Tokenizer::from_metadata(metadata)?);
        let template = ChatTemplate::from_metadata(metadata, tokenizer.clone())?;
        Ok(Self { tokenizer, template })
    }

    /// What a token is called: its bytes, or the name of a control token.
    #[must_use]
    pub fn name(&self, id: u32) -> String {
        String::from_utf8_lossy(self.tokenizer.token_bytes_with_control(id)).into_owned()
    }
}

impl Text for ModelText {
    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn end_ids(&self) -> BTreeSet<u32> {
        self.tokenizer.end_of_generation().collect()
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let begin = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos());
        begin.into_iter().chain(self.tokenizer.encode(text, SpecialTokens::AsText)).collect()
    }

    fn encode_chat(&self, chat: &ChatPrompt, asked_at: u64) -> Result<ChatTokens, BadPrompt> {
        let messages: Vec<Value> = json("messages", &chat.messages_json)?;
        let tools: Vec<Value> = json("tools", &chat.tools_json)?;
        let kwargs: Map<String, Value> = json("chat_template_kwargs", &chat.template_kwargs_json)?;
        let input = ChatInput {
            messages: &messages,
            tools: &tools,
            add_generation_prompt: true,
            kwargs: &kwargs,
            now: date(asked_at),
        };
        let prompt = self.template.render(&input).map_err(|error| {
            let param = match &error {
                ChatError::ToolsUnsupported => "tools",
                ChatError::ReservedArgument { .. } => "chat_template_kwargs",
                _ => "messages",
            };
            BadPrompt { message: crate::worker::chain(&error), param }
        })?;
        Ok(ChatTokens { ids: prompt.tokens, opens_thinking: prompt.opens_thinking })
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        let name = self.tokenizer.token_bytes_with_control(id);
        let shown = if is_marker(name) { name } else { self.tokenizer.token_bytes(id) };
        shown.to_vec()
    }
}

/// Whether a token marks thoughts or a tool call: some files call these control tokens, and others call them words.
fn is_marker(name: &[u8]) -> bool {
    let marks_call =
        |name: &[u8]| name.windows(10).any(|part| part == b"tool_call_" || part == b"tool_calls");
    matches!(name, b"<think>" | b"</think>") || (name.starts_with(b"<|") && marks_call(name))
}

fn json<T: serde::de::DeserializeOwned + Default>(param: &'static str, text: &str) -> Result<T, BadPrompt> {
    if text.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_str(text)
        .map_err(|error| BadPrompt { message: format!("{param} can't be read: {error}"), param })
}

/// Where the client's time is not known, the day: two workers that are asked at once then say the same.
fn date(asked_at: u64) -> DateTime {
    const DAY: u64 = 24 * 60 * 60;
    let seconds = if asked_at == 0 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        now - now % DAY
    } else {
        asked_at
    };
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC).datetime()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_other_control_tokens() {
        for marker in [
            "<think>",
            "</think>",
            "<|tool_calls_section_begin|>",
            "<|tool_call_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
        ] {
            assert!(is_marker(marker.as_bytes()), "{marker}");
        }
        for other in ["<|im_end|>", "[BOS]", "tool_call_begin", "", "think"] {
            assert!(!is_marker(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_date_is_the_clients() {
        assert_eq!(date(1_700_000_000).to_string(), "2023-11-14T22:13:20");
        assert_eq!(date(u64::MAX).year(), 9999);
        assert_eq!(date(0).hour(), 0);
    }
}
