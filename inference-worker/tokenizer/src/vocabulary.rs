//! The tokens: what bytes each stands for, and what kind each is.

use std::collections::HashMap;

use tandem_gguf::{Metadata, StringArray};

use crate::byte_alphabet;
use crate::error::TokenizerError;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// How a file writes its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// Bytes in GPT-2's alphabet.
    ByteLevel,
    /// Text in which `▁` stands for a blank, and `<0x0A>` for a byte that no text spells.
    SentencePiece,
}

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
    /// Tokens that stand for one byte of characters without a token.
    bytes_alone: HashMap<u8, u32>,
}

impl Vocabulary {
    /// Reads a vocabulary. Only what stands for text is written in a special way, control tokens are as they
    /// are.
    pub(crate) fn from_metadata(metadata: &Metadata, writing: Writing) -> Result<Vocabulary, TokenizerError> {
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
            bytes_alone: HashMap::new(),
        };
        for (id, text) in tokens.iter().enumerate() {
            let found = types.as_ref().map_or(1, |types| types[id]);
            let kind = match found {
                // 6 is a single byte; in a byte-level vocabulary that is text like any other.
                1 | 6 => Kind::Normal,
                2 | 3 => Kind::Control,
                4 => Kind::UserDefined,
                5 => Kind::Unused,
                found => return Err(TokenizerError::UnknownTokenType { id, found }),
            };
            let alone = (found == 6 && writing == Writing::SentencePiece).then(|| byte_alone(text)).flatten();
            let decoded = match (writing, kind) {
                _ if alone.is_some() => alone.map(|byte| vec![byte]),
                (Writing::ByteLevel, Kind::Normal) => byte_alphabet::bytes_of(text),
                (Writing::SentencePiece, Kind::Normal | Kind::UserDefined) => {
                    Some(text.replace('▁', " ").into())
                }
                _ => None,
            };
            let bytes = decoded.as_deref().unwrap_or(text.as_bytes());
            if let Some(byte) = alone {
                vocabulary.bytes_alone.entry(byte).or_insert(id as u32);
            } else if kind == Kind::Normal {
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

    /// The token that stands for this byte where no token stands for the character.
    pub(crate) fn byte_id(&self, byte: u8) -> Option<u32> {
        self.bytes_alone.get(&byte).copied()
    }

    /// The ids of one kind, ascending.
    pub(crate) fn ids_of(&self, kind: Kind) -> impl Iterator<Item = u32> {
        self.kinds.iter().enumerate().filter(move |&(_, &of)| of == kind).map(|(id, _)| id as u32)
    }
}

/// `<0x0A>` → 10.
fn byte_alone(text: &str) -> Option<u8> {
    u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
