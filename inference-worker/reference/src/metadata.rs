//! The metadata of a generated model's file.

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Meta {
    /// A count or an id.
    U32(u32),
    /// A number.
    F32(f32),
    /// A switch.
    Bool(bool),
    /// A name.
    Text(String),
    /// Tokens, merges.
    Texts(Vec<String>),
    /// Token types.
    Ints(Vec<i32>),
}

impl Meta {
    /// A size as the files hold it.
    ///
    /// # Panics
    /// When the size doesn't fit 32 bits.
    pub fn count(count: usize) -> Self {
        Meta::U32(u32::try_from(count).expect("sizes of generated models are small"))
    }
}

/// A vocabulary without merges in which every byte is a token, ids 0 to 255 in the byte-level alphabet's order,
/// followed by begin, end and end-of-turn, and padding up to `size`.
///
/// # Panics
/// When `size` is below 259.
pub fn vocabulary(size: usize, pre_tokenizer: &str) -> Vec<(String, Meta)> {
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
    let mut types = vec![1; tokens.len()];
    tokens.extend(SPECIAL.map(String::from));
    types.resize(tokens.len(), 3);
    tokens.extend((tokens.len()..size).map(|id| format!("[PAD{id}]")));
    types.resize(tokens.len(), 5);
    [
        ("model", Meta::Text("gpt2".into())),
        ("pre", Meta::Text(pre_tokenizer.into())),
        ("tokens", Meta::Texts(tokens)),
        ("token_type", Meta::Ints(types)),
        ("merges", Meta::Texts(vec!["a b".into()])),
        ("bos_token_id", Meta::U32(256)),
        ("eos_token_id", Meta::U32(257)),
    ]
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .into()
}
