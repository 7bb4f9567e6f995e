//! Log probabilities, in the shapes of both APIs, with token ids beside the tokens' text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use tandem_gateway_core::{Alternative, Token};

/// What OpenAI writes for a probability of zero, which JSON has no number for.
const LOWEST: f32 = -9999.0;

/// Of a chat completion: one entry per token of the output, thoughts included.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<Entry>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    token: Candidate,
    top_logprobs: Vec<Candidate>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    token: String,
    token_id: u32,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Candidate {
    fn new(id: u32, bytes: &[u8], logprob: f32) -> Self {
        Self {
            token: text(bytes).into_owned(),
            token_id: id,
            logprob: finite(logprob),
            bytes: bytes.to_vec(),
        }
    }
}

impl ChatLogprobs {
    pub(crate) fn push(&mut self, token: &Token) {
        let top = |top: &Alternative| Candidate::new(top.id, &top.bytes, top.logprob);
        self.content.push(Entry {
            token: Candidate::new(token.id, &token.bytes, token.logprob),
            top_logprobs: token.top.iter().map(top).collect(),
        });
    }
}

/// Of a plain completion.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_ids: Vec<u32>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    pub(crate) fn push(&mut self, token: &Token, offset: usize) {
        self.tokens.push(text(&token.bytes).into_owned());
        self.token_ids.push(token.id);
        self.token_logprobs.push(finite(token.logprob));
        let top = token.top.iter().map(|top| (text(&top.bytes).into_owned(), finite(top.logprob)));
        self.top_logprobs.push(top.collect());
        self.text_offset.push(offset);
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LOWEST) } else { LOWEST }
}
