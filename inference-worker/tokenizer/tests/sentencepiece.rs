//! Sentencepiece vocabularies, against what `sentencepiece` makes of the same one.

mod support;

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value as Json;
use support::decode;
use tandem_gguf::{Metadata, StringArray};
use tandem_tokenizer::{SpecialTokens, Tokenizer, TokenizerError};

/// A BPE vocabulary of 560 tokens with bytes to fall back on, trained and run by `sentencepiece` 0.2.
static FIXTURE: LazyLock<Json> = LazyLock::new(|| {
    serde_json::from_str(include_str!("fixtures/sentencepiece.json")).expect("the fixture is JSON")
});

fn list<T>(value: &Json, read: fn(&Json) -> Option<T>) -> Vec<T> {
    let values = value.as_array().expect("a list");
    values.iter().map(|value| read(value).expect("values of one kind")).collect()
}

fn metadata() -> Metadata {
    let tokens: StringArray =
        list(&FIXTURE["tokens"], |text| text.as_str().map(str::to_owned)).iter().collect();
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.scores", list(&FIXTURE["scores"], |score| Some(score.as_f64()? as f32)));
    metadata.insert(
        "tokenizer.ggml.token_type",
        list(&FIXTURE["types"], |kind| kind.as_i64()?.try_into().ok()) as Vec<i32>,
    );
    metadata.insert("tokenizer.ggml.bos_token_id", 1u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 2u32);
    metadata
}

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_metadata(&metadata()).expect("the test vocabulary is whole"));

#[test]
fn ids_are_sentencepieces() {
    for case in FIXTURE["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = list(&case["ids"], |id| id.as_u64()?.try_into().ok());
        assert_eq!(TOKENIZER.encode(text, SpecialTokens::AsText), expected, "{text:?}");
    }
}

#[test]
fn a_prompt_starts_with_bos_and_ends_at_eos() {
    assert!(TOKENIZER.add_bos());
    assert_eq!(TOKENIZER.bos(), Some(1));
    assert_eq!(TOKENIZER.end_of_generation().collect::<Vec<_>>(), [2]);
    assert_eq!(TOKENIZER.encode("</s>", SpecialTokens::Recognise), [2]);
    assert!(!TOKENIZER.encode("</s>", SpecialTokens::AsText).contains(&2));
}

#[test]
fn bytes_without_a_token_are_spelled_out_one_by_one() {
    let ids = TOKENIZER.encode("🙂", SpecialTokens::AsText);
    assert_eq!(TOKENIZER.token_bytes(ids[ids.len() - 1]), [0x82]);
    assert_eq!(decode(&TOKENIZER, &ids), " 🙂".as_bytes());
}

#[test]
fn a_file_can_do_without_the_first_blank() {
    let mut metadata = metadata();
    metadata.insert("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(decode(&tokenizer, &tokenizer.encode("the", SpecialTokens::AsText)), b"the");
}

#[test]
fn scores_and_bytes_must_be_whole() {
    let mut few_scores = metadata();
    few_scores.insert("tokenizer.ggml.scores", vec![0.0f32; 3]);
    assert!(matches!(
        Tokenizer::from_metadata(&few_scores),
        Err(TokenizerError::WrongLength { found: 3, .. })
    ));

    let mut no_bytes = metadata();
    no_bytes.insert("tokenizer.ggml.token_type", vec![1i32; TOKENIZER.vocab_size()]);
    assert_eq!(Tokenizer::from_metadata(&no_bytes).unwrap_err(), TokenizerError::MissingByte { byte: 0 });
    no_bytes.insert("tokenizer.ggml.unknown_token_id", 0u32);
    let unknown = Tokenizer::from_metadata(&no_bytes).unwrap().encode("\u{1}", SpecialTokens::AsText);
    assert_eq!(unknown.last(), Some(&0));
}

#[test]
fn a_very_long_text_is_no_trouble() {
    for text in ["the ".repeat(50_000), "é".repeat(100_000), " ".repeat(200_000)] {
        let ids = TOKENIZER.encode(&text, SpecialTokens::AsText);
        assert_eq!(decode(&TOKENIZER, &ids), format!(" {text}").as_bytes());
    }
}

proptest! {
    #[test]
    fn decoding_gives_back_any_text_behind_a_blank(text in "\\PC{0,20}|[a-z ]{0,30}") {
        prop_assume!(!text.is_empty());
        let ids = TOKENIZER.encode(&text, SpecialTokens::AsText);
        prop_assert_eq!(decode(&TOKENIZER, &ids), format!(" {text}").into_bytes());
    }
}
