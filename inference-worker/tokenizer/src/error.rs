//! Why a vocabulary can't be used.

use tandem_gguf::MetadataError;
use thiserror::Error;

/// What is wrong with a file's tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenizerError {
    /// A key is absent or of the wrong kind.
    #[error("the tokenizer's metadata is unusable")]
    Metadata(#[from] MetadataError),
    /// A tokenizer model that isn't built in.
    #[error(
        "the tokenizer model `{model}` is not supported; supported: gpt2 (byte-level BPE), llama (sentencepiece)"
    )]
    UnsupportedModel {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// A pre-tokenizer that isn't built in. Guessing another would give wrong tokens without a sign.
    #[error("the pre-tokenizer `{pre}` is not supported; supported: {supported}")]
    UnsupportedPreTokenizer {
        /// `tokenizer.ggml.pre`.
        pre: String,
        /// The names that are.
        supported: String,
    },
    /// Parallel arrays of different lengths.
    #[error("`{key}` has {found} entries for {tokens} tokens")]
    WrongLength {
        /// The key of the wrong one.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The length of `tokenizer.ggml.tokens`.
        tokens: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("`{key}` is {id}, but there are only {tokens} tokens")]
    NoSuchToken {
        /// The key that holds it.
        key: &'static str,
        /// The id.
        id: u32,
        /// The vocabulary's size.
        tokens: usize,
    },
    /// A token type that the format doesn't define.
    #[error("token {id} has the unknown type {found}; types are 1 to 6")]
    UnknownTokenType {
        /// The token.
        id: usize,
        /// Its type.
        found: i32,
    },
    /// Some text could not be encoded at all.
    #[error("the vocabulary has no token for the byte {byte:#04x}, so some text could not be encoded")]
    MissingByte {
        /// The first byte without a token.
        byte: u8,
    },
    /// A merge that doesn't join two tokens into a third.
    #[error("merge {index} is {merge:?}, which does not join two tokens of the vocabulary into a third")]
    BadMerge {
        /// Its position.
        index: usize,
        /// Its text.
        merge: String,
    },
    /// The vocabulary's special tokens can't be searched for.
    #[error("the special tokens can't be compiled into a search: {reason}")]
    SpecialTokens {
        /// What the search says.
        reason: String,
    },
}
