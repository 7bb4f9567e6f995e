//! Encoding against what well-known tokenizers give, and what holds for any text.

mod support;

use std::sync::LazyLock;

use proptest::prelude::*;
use support::{CONTROL, Special, USER_DEFINED, control, decode, golden, metadata, tokenizer};
use tandem_gguf::{StringArray, Value};
use tandem_tokenizer::{SpecialTokens, Tokenizer, TokenizerError};

const PRE_TOKENIZERS: [&str; 6] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "kimi-k2"];

/// A pre-tokenizer's cases, as (text, ids).
fn cases(pre: &str) -> Vec<(String, Vec<u32>)> {
    let golden = golden();
    let cases = golden[pre]["cases"].as_array().expect("the fixture has this pre-tokenizer");
    let read = |case: &serde_json::Value| {
        let ids = case["ids"].as_array()?.iter().map(|id| id.as_u64()?.try_into().ok());
        Some((case["text"].as_str()?.to_owned(), ids.collect::<Option<_>>()?))
    };
    cases.iter().map(|case| read(case).expect("every case has a text and ids")).collect()
}

fn assert_golden(pre: &str, tokenizer: &Tokenizer) {
    for (text, expected) in cases(pre) {
        assert_eq!(tokenizer.encode(&text, SpecialTokens::AsText), expected, "{pre}: {text:?}");
    }
}

#[test]
fn gpt2_ids_are_the_reference_ones() {
    assert_golden("gpt-2", &tokenizer("gpt-2", &[]));
}

#[test]
fn smollm_ids_are_the_reference_ones() {
    assert_golden("smollm", &tokenizer("smollm", &[]));
}

#[test]
fn llama3_ids_are_the_reference_ones() {
    assert_golden("llama-bpe", &tokenizer("llama-bpe", &[]));
}

#[test]
fn qwen2_ids_are_the_reference_ones() {
    assert_golden("qwen2", &tokenizer("qwen2", &[]));
}

#[test]
fn deepseek_v3_ids_are_the_reference_ones() {
    assert_golden("deepseek-v3", &tokenizer("deepseek-v3", &[]));
}

#[test]
fn kimi_k2_ids_are_tiktokens() {
    assert_golden("kimi-k2", &tokenizer("kimi-k2", &[]));
}

#[test]
fn without_merges_the_token_ids_are_the_ranks() {
    let mut metadata = metadata("kimi-k2", &[]);
    metadata.insert("tokenizer.ggml.merges", StringArray::default());
    assert_golden("kimi-k2", &Tokenizer::from_metadata(&metadata).unwrap());
}

#[test]
fn control_tokens_are_recognised_only_on_request() {
    let tokenizer = tokenizer("kimi-k2", &[control("<|im_end|>"), control("[EOS]")]);
    let (im_end, eos) = (420, 421);
    let text = "the<|im_end|>the[EOS]";
    let recognised = tokenizer.encode(text, SpecialTokens::Recognise);
    assert_eq!(recognised.iter().filter(|&&id| id == im_end || id == eos).count(), 2);
    assert_eq!(recognised.last(), Some(&eos));

    let as_text = tokenizer.encode(text, SpecialTokens::AsText);
    assert!(as_text.iter().all(|&id| id < 420));
    assert_eq!(decode(&tokenizer, &as_text), text.as_bytes());
}

#[test]
fn control_tokens_have_bytes_only_on_request() {
    let tokenizer = tokenizer("kimi-k2", &[control("<|im_end|>")]);
    assert_eq!(tokenizer.token_bytes(420), b"");
    assert_eq!(tokenizer.token_bytes_with_control(420), b"<|im_end|>");
    assert!(tokenizer.is_control(420));
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
    assert_eq!(tokenizer.token_bytes_with_control(u32::MAX), b"");
    assert!(!tokenizer.is_control(u32::MAX));
}

#[test]
fn the_longest_of_two_control_tokens_wins() {
    let tokenizer = tokenizer("qwen2", &[control("<|a"), control("<|a|>")]);
    assert_eq!(tokenizer.encode("<|a|>", SpecialTokens::Recognise), [421]);
    assert_eq!(tokenizer.encode("<|a<|a|>", SpecialTokens::Recognise), [420, 421]);
}

#[test]
fn user_defined_tokens_are_words_like_others() {
    let tokenizer = tokenizer("qwen2", &[Special { text: "<tool_call>", kind: USER_DEFINED }]);
    let ids = tokenizer.encode("the<tool_call>the", SpecialTokens::AsText);
    assert!(ids.contains(&420));
    assert_eq!(decode(&tokenizer, &ids), b"the<tool_call>the");
}

#[test]
fn unused_tokens_are_never_produced() {
    let tokenizer = tokenizer("qwen2", &[Special { text: "[PAD420]", kind: 5 }]);
    assert!(tokenizer.encode("[PAD420]", SpecialTokens::Recognise).iter().all(|&id| id < 420));
    assert_eq!(tokenizer.token_bytes(420), b"");
}

#[test]
fn every_token_that_ends_a_generation_is_known() {
    let special = [
        control("[BOS]"),
        control("[EOS]"),
        control("<|im_end|>"),
        control("<|im_user|>"),
        control("<odd_end>"),
    ];
    let mut metadata = metadata("kimi-k2", &special);
    metadata.insert("tokenizer.ggml.bos_token_id", 420u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 421u32);
    metadata.insert("tokenizer.ggml.eot_token_id", 424u32);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.end_of_generation().collect::<Vec<_>>(), [421, 422, 424]);
    assert!(tokenizer.is_end_of_generation(422));
    assert!(!tokenizer.is_end_of_generation(423));
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(420), Some(421)));
    assert!(!tokenizer.add_bos());
    assert_eq!(tokenizer.vocab_size(), 425);
    assert_eq!(tokenizer.special_token("<|im_user|>"), Some(423));
    assert_eq!(tokenizer.special_token("the"), None);
}

#[test]
fn bos_is_added_as_the_file_says_and_otherwise_as_its_family_does() {
    let mut llama = metadata("llama-bpe", &[control("<|begin_of_text|>")]);
    assert!(!Tokenizer::from_metadata(&llama).unwrap().add_bos(), "there is no BOS to add");
    llama.insert("tokenizer.ggml.bos_token_id", 420u32);
    assert!(Tokenizer::from_metadata(&llama).unwrap().add_bos());
    llama.insert("tokenizer.ggml.add_bos_token", false);
    assert!(!Tokenizer::from_metadata(&llama).unwrap().add_bos());
}

fn error(change: impl FnOnce(&mut tandem_gguf::Metadata)) -> TokenizerError {
    let mut metadata = metadata("qwen2", &[]);
    change(&mut metadata);
    Tokenizer::from_metadata(&metadata).expect_err("the vocabulary is unusable")
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let model = error(|metadata| drop(metadata.insert("tokenizer.ggml.model", "t5")));
    assert_eq!(
        model.to_string(),
        "the tokenizer model `t5` is not supported; supported: gpt2 (byte-level BPE), llama (sentencepiece)"
    );
    let pre = error(|metadata| drop(metadata.insert("tokenizer.ggml.pre", "tekken"))).to_string();
    assert!(
        pre.starts_with("the pre-tokenizer `tekken` is not supported; supported: kimi-k2, llama-bpe"),
        "{pre}"
    );
}

#[test]
fn unusable_vocabularies_are_refused() {
    let too_few_types = error(|metadata| drop(metadata.insert("tokenizer.ggml.token_type", vec![1i32; 3])));
    assert!(matches!(too_few_types, TokenizerError::WrongLength { found: 3, tokens: 420, .. }));

    let odd_type = error(|metadata| drop(metadata.insert("tokenizer.ggml.token_type", vec![9i32; 420])));
    assert_eq!(odd_type, TokenizerError::UnknownTokenType { id: 0, found: 9 });

    let no_letters = error(|metadata| {
        metadata.insert("tokenizer.ggml.token_type", vec![CONTROL; 420]);
    });
    assert_eq!(no_letters, TokenizerError::MissingByte { byte: 0 });

    let beyond = error(|metadata| drop(metadata.insert("tokenizer.ggml.eos_token_id", 420u32)));
    assert!(matches!(beyond, TokenizerError::NoSuchToken { id: 420, tokens: 420, .. }));

    for merge in ["a", "a b c", "q q", "世 a"] {
        let merges: StringArray = [merge].into_iter().collect();
        let bad = error(|metadata| drop(metadata.insert("tokenizer.ggml.merges", merges)));
        assert_eq!(bad, TokenizerError::BadMerge { index: 0, merge: merge.to_owned() });
    }

    let missing = error(|metadata| drop(metadata.insert("tokenizer.ggml.tokens", Value::U32(1))));
    assert!(matches!(missing, TokenizerError::Metadata(_)));
}

#[test]
fn a_character_may_take_several_tokens() {
    let tokenizer = tokenizer("kimi-k2", &[]);
    let ids = tokenizer.encode("🙂", SpecialTokens::AsText);
    assert!(ids.len() > 1);
    assert!(ids.iter().any(|&id| std::str::from_utf8(tokenizer.token_bytes(id)).is_err()));
    assert_eq!(decode(&tokenizer, &ids), "🙂".as_bytes());
}

/// A word of 100 KB is one piece. Joining it pair by pair in quadratic time takes minutes.
#[test]
fn a_very_long_word_is_no_trouble() {
    for pre in PRE_TOKENIZERS {
        let tokenizer = tokenizer(pre, &[]);
        for word in ["the".repeat(100_000), "a".repeat(300_000), " ".repeat(300_000), "!?".repeat(150_000)] {
            let ids = tokenizer.encode(&word, SpecialTokens::AsText);
            assert_eq!(decode(&tokenizer, &ids), word.as_bytes(), "{pre}");
        }
    }
}

/// Texts in which rules meet: scripts, case, digits, blanks, line ends, contractions, and what looks like
/// control tokens.
fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<String>(),
        "[ \t\r\n\u{a0}\u{3000}]{0,6}",
        "[a-zA-Z]{0,8}",
        "[0-9½Ⅻ٣]{0,6}",
        "[一-龥ぁ-んァ-ン가-힣]{0,4}",
        Just("'s".to_owned()),
        Just("'LL".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("[EOS]".to_owned()),
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

/// One per pre-tokenizer: reading a vocabulary takes longer than encoding a hundred texts.
static TOKENIZERS: LazyLock<[Tokenizer; 6]> =
    LazyLock::new(|| PRE_TOKENIZERS.map(|pre| tokenizer(pre, &[control("<|im_end|>"), control("[EOS]")])));

proptest! {
    #[test]
    fn decoding_gives_back_any_text(text in texts(), pre in 0..PRE_TOKENIZERS.len()) {
        let tokenizer = &TOKENIZERS[pre];
        let ids = tokenizer.encode(&text, SpecialTokens::AsText);
        prop_assert!(ids.iter().all(|&id| id < 420), "no control token comes out of text");
        prop_assert_eq!(decode(tokenizer, &ids), text.as_bytes());
    }

    #[test]
    fn recognised_control_tokens_spell_what_they_replace(text in texts()) {
        let tokenizer = &TOKENIZERS[5];
        let ids = tokenizer.encode(&text, SpecialTokens::Recognise);
        let spelled: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes_with_control(id)).copied().collect();
        prop_assert_eq!(spelled, text.as_bytes());
        prop_assert_eq!(ids.contains(&420), text.contains("<|im_end|>"));
    }
}
