//! Vocabularies for tests: small ones that were trained per pre-tokenizer, with what well-known tokenizers make of them.

#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::Value;
use tandem_gguf::{Metadata, StringArray};
use tandem_tokenizer::Tokenizer;

/// Texts, the pieces that they fall into and their token ids, per pre-tokenizer.
///
/// The vocabularies have 420 tokens. Expected values come from Hugging Face's `tokenizers` 0.23 with the published patterns, for
/// `kimi-k2` from `tiktoken` 0.14 with the official pattern, its pieces from the `regex` package.
pub(crate) fn golden() -> Value {
    serde_json::from_str(include_str!("../fixtures/golden.json")).expect("the fixture is JSON")
}

/// What a test vocabulary adds to the trained tokens.
pub(crate) struct Special {
    pub(crate) text: &'static str,
    pub(crate) kind: i32,
}

pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;

pub(crate) const fn control(text: &'static str) -> Special {
    Special { text, kind: CONTROL }
}

/// The metadata of a file with the trained vocabulary of `pre`, and `special` tokens after it.
pub(crate) fn metadata(pre: &str, special: &[Special]) -> Metadata {
    let golden = golden();
    let strings = |key: &str| -> Vec<String> {
        let list = golden[pre][key].as_array().expect("the fixture has this pre-tokenizer");
        list.iter().map(|text| text.as_str().expect("a list of strings").to_owned()).collect()
    };
    let mut tokens = strings("tokens");
    let mut types = vec![1i32; tokens.len()];
    for Special { text, kind } in special {
        tokens.push((*text).to_owned());
        types.push(*kind);
    }
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    metadata.insert("tokenizer.ggml.tokens", tokens.iter().collect::<StringArray>());
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", strings("merges").iter().collect::<StringArray>());
    metadata
}

pub(crate) fn tokenizer(pre: &str, special: &[Special]) -> Tokenizer {
    Tokenizer::from_metadata(&metadata(pre, special)).expect("the test vocabulary is whole")
}

pub(crate) fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect()
}
