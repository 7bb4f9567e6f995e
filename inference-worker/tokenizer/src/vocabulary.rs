//! The tokens: what bytes each stands for, and what kind each is.

use std::collections::HashMap;

use tandem_gguf::{Metadata, StringArray};

use crate::byte_alphabet;
use crate::error::TokenizerError;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text.
    Normal,
    /// Structure: never part of text, and never made from a user's text.
    Control,
    /// Text that was added whole: recognised in any text.
    UserDefined,
    /// Fills a gap in the ids; means nothing.
    Unused,
}

/// All tokens of a model.
#[derive(Debug, Clone)]
pub(crate) struct Vocabulary {
    /// The bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    /// Normal tokens by their bytes; of equal ones the lowest id.
    by_bytes: HashMap<Box<[u8]>, u32>,
}

impl Vocabulary {
    /// Reads a byte-level vocabulary: normal tokens are written in GPT-2's alphabet, others as they are.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Result<Vocabulary, TokenizerError> {
        let tokens = metadata.get::<&StringArray>(TOKENS)?;
        let types = metadata.find::<Vec<i32>>(TOKEN_TYPE)?;
        if let Some(types) = &types
            && types.len() != tokens.len()
        {
            let (found, tokens) = (types.len(), tokens.len());
            return Err(TokenizerError::WrongLength { key: TOKEN_TYPE, found, tokens });
        }
        let mut vocabulary = Vocabulary {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens.len()),
            kinds: Vec::with_capacity(tokens.len()),
            by_bytes: HashMap::with_capacity(tokens.len()),
        };
        for (id, text) in tokens.iter().enumerate() {
            let kind = match types.as_ref().map_or(1, |types| types[id]) {
                1 => Kind::Normal,
                2 | 3 => Kind::Control,
                4 => Kind::UserDefined,
                5 => Kind::Unused,
                // A byte of a sentencepiece vocabulary; in a byte-level one it would be text.
                6 => Kind::Normal,
                found => return Err(TokenizerError::UnknownTokenType { id, found }),
            };
            let decoded = match kind {
                Kind::Normal => byte_alphabet::bytes_of(text),
                _ => None,
            };
            let bytes = decoded.as_deref().unwrap_or(text.as_bytes());
            if kind == Kind::Normal {
                vocabulary.by_bytes.entry(bytes.into()).or_insert(id as u32);
            }
            vocabulary.bytes.extend_from_slice(bytes);
            // A header is far below 4 GiB, so its strings are too.
            vocabulary.ends.push(vocabulary.bytes.len() as u32);
            vocabulary.kinds.push(kind);
        }
        Ok(vocabulary)
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty for ids beyond the vocabulary.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    pub(crate) fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }

    /// The normal token that stands for exactly these bytes.
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.by_bytes.get(bytes).copied()
    }

    /// The ids of one kind, ascending.
    pub(crate) fn ids_of(&self, kind: Kind) -> impl Iterator<Item = u32> {
        self.kinds.iter().enumerate().filter(move |&(_, &of)| of == kind).map(|(id, _)| id as u32)
    }
}
