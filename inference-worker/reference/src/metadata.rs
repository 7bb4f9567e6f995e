//! The metadata of a generated model's file.

use tandem_gguf::{StringArray, Value};

/// A size as the files hold it.
///
/// # Panics
/// When the size doesn't fit 32 bits.
pub fn count(count: usize) -> Value {
    Value::U32(u32::try_from(count).expect("sizes of generated models are small"))
}

/// A vocabulary without merges in which every byte is a token, ids 0 to 255 in the byte-level alphabet's order,
/// followed by begin, end and end-of-turn, and padding up to `size`.
///
/// # Panics
/// When `size` is below 259.
pub fn vocabulary(size: usize, pre_tokenizer: &str) -> Vec<(String, Value)> {
    const SPECIAL: [&str; 3] = ["[BOS]", "[EOS]", "<|im_end|>"];
    assert!(size >= 256 + SPECIAL.len(), "a vocabulary needs 256 bytes and {} special tokens", SPECIAL.len());
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    // Bytes that can't be shown stand as the characters from 256 on, in ascending order.
    let hidden = (0..=u8::MAX).filter(|&b| !is_visible(b)).zip(256u32..);
    let shown = (0..=u8::MAX).filter(|&b| is_visible(b)).map(u32::from);
    let mut tokens: Vec<String> = shown
        .chain(hidden.map(|(_, code)| code))
        .map(|code| char::from_u32(code).expect("codes are below the surrogates").to_string())
        .collect();
    let mut types = vec![1i32; tokens.len()];
    tokens.extend(SPECIAL.map(String::from));
    types.resize(tokens.len(), 3);
    tokens.extend((tokens.len()..size).map(|id| format!("[PAD{id}]")));
    types.resize(tokens.len(), 5);
    [
        ("model", Value::from("gpt2")),
        ("pre", Value::from(pre_tokenizer)),
        ("tokens", tokens.into_iter().collect::<StringArray>().into()),
        ("token_type", types.into()),
        ("merges", ["a b"].into_iter().collect::<StringArray>().into()),
        ("bos_token_id", Value::U32(256)),
        ("eos_token_id", Value::U32(257)),
    ]
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .into()
}
