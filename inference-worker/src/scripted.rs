//! Text for the scripted model: 256 bytes, some characters of several bytes, and one id that ends a turn.

use std::collections::BTreeSet;
use std::sync::Arc;

use tandem_engine::scheduler::scripted::{Script, ScriptedModel};
use tandem_worker_api::ChatPrompt;

use crate::text::{BadPrompt, ChatTokens, Text};
use crate::worker::Loaded;

/// The first of the characters that the ids from 256 on stand for.
const FIRST_CHARACTER: u32 = 0x1F400;

/// The scripted model with its text, as a worker loads it.
#[must_use]
pub fn load(script: Script) -> Loaded<ScriptedModel> {
    let numerics_id = format!("scripted-{}", script.divergence);
    let text = Arc::new(ScriptedText { vocab: script.vocab });
    Loaded { model: ScriptedModel::new(script), text, numerics_id }
}

/// Bytes and animals. The last id ends a turn.
#[derive(Debug, Clone)]
pub struct ScriptedText {
    /// Ids; more than 256.
    pub vocab: u32,
}

impl Text for ScriptedText {
    fn vocab_size(&self) -> usize {
        self.vocab as usize
    }

    fn end_ids(&self) -> BTreeSet<u32> {
        BTreeSet::from([self.vocab - 1])
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    /// The conversation's JSON stands for itself.
    fn encode_chat(&self, chat: &ChatPrompt, _: u64) -> Result<ChatTokens, BadPrompt> {
        if !chat.messages_json.starts_with('[') {
            let message = "messages is not an array".to_owned();
            return Err(BadPrompt { message, param: "messages" });
        }
        Ok(ChatTokens { ids: self.encode(&chat.messages_json), opens_thinking: false })
    }

    /// Bytes are printable, so that a demo can be looked at.
    fn bytes(&self, id: u32) -> Vec<u8> {
        match id {
            0..256 => vec![b' ' + (id % 95) as u8],
            _ if id + 1 < self.vocab => {
                char::from_u32(FIRST_CHARACTER + id - 256).unwrap_or('?').to_string().into_bytes()
            }
            _ => Vec::new(),
        }
    }
}
