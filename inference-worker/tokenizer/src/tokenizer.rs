//! A model's tokenizer, read from its file.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use tandem_gguf::Metadata;

use crate::bpe::{Bpe, Scratch};
use crate::error::TokenizerError;
use crate::split::{PreTokenizer, Splitter};
use crate::vocabulary::{Kind, Vocabulary, Writing};

/// What to make of a text that spells a control token, such as `<|im_end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// The control token: for text of one's own, such as a template's.
    Recognise,
    /// Ordinary text: for everything that comes from a user.
    AsText,
}

/// Text to token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    pieces: Pieces,
    bpe: Bpe,
    control: Search,
    user_defined: Search,
    end_of_generation: BTreeSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

/// What tokens are never joined across.
#[derive(Debug, Clone)]
enum Pieces {
    /// What a pre-tokenizer cuts.
    Split(Splitter),
    /// Nothing; but some files put a blank before every text, so that its first word is like any other.
    Whole { blank_first: bool },
}

/// Keys whose token ends a generation.
const END_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Tokens that end a generation in whatever file they occur: the keys above differ between files of the same
/// model.
const END_NAMES: [&str; 14] = [
    "<|im_end|>",
    "[EOS]",
    "[EOT]",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|EOT|>",
    "<EOT>",
    "</s>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<|eos|>",
];

impl Tokenizer {
    /// Reads the tokenizer that a file's metadata describe.
    ///
    /// # Errors
    /// When the metadata are incomplete or contradict themselves, or name a model or pre-tokenizer that isn't
    /// supported.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let (vocabulary, pieces, bpe, adds_bos) = match metadata.get::<&str>("tokenizer.ggml.model")? {
            "gpt2" => {
                let pre = PreTokenizer::from_name(metadata.get::<&str>("tokenizer.ggml.pre")?)?;
                let vocabulary = Vocabulary::from_metadata(metadata, Writing::ByteLevel)?;
                let bpe = Bpe::byte_level(metadata, &vocabulary, pre.whole_pieces_first())?;
                (vocabulary, Pieces::Split(pre.splitter()), bpe, pre.adds_bos())
            }
            "llama" => {
                let vocabulary = Vocabulary::from_metadata(metadata, Writing::SentencePiece)?;
                let bpe = Bpe::sentencepiece(metadata, &vocabulary)?;
                let blank_first = metadata.find::<bool>("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                (vocabulary, Pieces::Whole { blank_first }, bpe, true)
            }
            model => return Err(TokenizerError::UnsupportedModel { model: model.to_owned() }),
        };
        let token = |key: &'static str| match metadata.find::<u32>(key)? {
            Some(id) if id as usize >= vocabulary.len() => {
                Err(TokenizerError::NoSuchToken { key, id, tokens: vocabulary.len() })
            }
            found => Ok(found),
        };
        let mut end_of_generation = BTreeSet::new();
        for key in END_KEYS {
            end_of_generation.extend(token(key)?);
        }
        end_of_generation.extend(
            vocabulary
                .ids_of(Kind::Control)
                .chain(vocabulary.ids_of(Kind::UserDefined))
                .filter(|&id| END_NAMES.iter().any(|name| name.as_bytes() == vocabulary.bytes(id))),
        );
        let bos = token("tokenizer.ggml.bos_token_id")?;
        let eos = token(END_KEYS[0])?;
        let add_bos = metadata.find::<bool>("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
        Ok(Tokenizer {
            pieces,
            bpe,
            control: Search::new(&vocabulary, Kind::Control)?,
            user_defined: Search::new(&vocabulary, Kind::UserDefined)?,
            end_of_generation,
            bos,
            eos,
            add_bos: add_bos && bos.is_some(),
            vocabulary,
        })
    }

    /// The tokens of a text. Adds no BOS: see [`add_bos`](Self::add_bos).
    ///
    /// Tokens that the file calls user-defined are ordinary words added whole; they are recognised either
    /// way.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut scratch = Scratch::default();
        match special {
            SpecialTokens::AsText => self.encode_text(text, &mut scratch, &mut tokens),
            SpecialTokens::Recognise => self.encode_around_control(
                text,
                |part, tokens| {
                    self.encode_text(part, &mut scratch, tokens);
                },
                &mut tokens,
            ),
        }
        tokens
    }

    /// Control tokens become ids; `text_between` encodes what lies between them.
    pub(crate) fn encode_around_control(
        &self,
        text: &str,
        mut text_between: impl FnMut(&str, &mut Vec<u32>),
        tokens: &mut Vec<u32>,
    ) {
        self.control.cut(text, |part| match part {
            Part::Token(id) => tokens.push(id),
            Part::Text(text) => text_between(text, tokens),
        });
    }

    pub(crate) fn encode_text(&self, text: &str, scratch: &mut Scratch, tokens: &mut Vec<u32>) {
        self.user_defined.cut(text, |part| match part {
            Part::Token(id) => tokens.push(id),
            Part::Text(text) => match &self.pieces {
                Pieces::Split(splitter) => splitter.for_each(text, &mut |piece| {
                    self.bpe.encode(&self.vocabulary, piece, scratch, tokens);
                }),
                Pieces::Whole { blank_first: true } => {
                    self.bpe.encode(&self.vocabulary, &format!(" {text}"), scratch, tokens);
                }
                Pieces::Whole { blank_first: false } => {
                    self.bpe.encode(&self.vocabulary, text, scratch, tokens)
                }
            },
        });
    }

    /// The bytes that a token adds to the text: none for control tokens and ids beyond the vocabulary. Often
    /// not UTF-8 by themselves.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        match self.vocabulary.kind(id) {
            Kind::Normal | Kind::UserDefined => self.vocabulary.bytes(id),
            Kind::Control | Kind::Unused => &[],
        }
    }

    /// As [`token_bytes`](Self::token_bytes), but control tokens show their names, such as
    /// `<|tool_call_begin|>`.
    pub fn token_bytes_with_control(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Whether the token is structure rather than text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == Kind::Control
    }

    /// Whether the model has finished when it produces this token. Files of the same model disagree about
    /// which token that is, so every known one counts.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// All tokens that end a generation, ascending.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> {
        self.end_of_generation.iter().copied()
    }

    /// The token that a text begins with.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that the file says a text ends with. To stop a generation ask
    /// [`is_end_of_generation`](Self::is_end_of_generation).
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether a prompt must begin with [`bos`](Self::bos); false when there is none.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// How many token ids there are: one more than the highest.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The id of the control or user-defined token that is spelled so.
    pub fn special_token(&self, text: &str) -> Option<u32> {
        self.vocabulary
            .ids_of(Kind::Control)
            .chain(self.vocabulary.ids_of(Kind::UserDefined))
            .find(|&id| self.vocabulary.bytes(id) == text.as_bytes())
    }

    /// The spellings of all control tokens.
    pub(crate) fn control_spellings(&self) -> impl Iterator<Item = &str> {
        self.vocabulary
            .ids_of(Kind::Control)
            .filter_map(|id| std::str::from_utf8(self.vocabulary.bytes(id)).ok())
            .filter(|text| text.len() > 1)
    }
}

/// Finds the tokens of one kind in a text, the longest at the leftmost place.
///
/// Those of a single byte are not looked for: nobody could write that byte as text any more.
#[derive(Debug, Clone)]
struct Search {
    /// None when there are no tokens to look for.
    automaton: Option<AhoCorasick>,
    /// The token of each of the automaton's patterns.
    ids: Vec<u32>,
}

enum Part<'t> {
    Token(u32),
    Text(&'t str),
}

impl Search {
    fn new(vocabulary: &Vocabulary, kind: Kind) -> Result<Search, TokenizerError> {
        let ids: Vec<u32> = vocabulary.ids_of(kind).filter(|&id| vocabulary.bytes(id).len() > 1).collect();
        let automaton = (!ids.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(ids.iter().map(|&id| vocabulary.bytes(id)))
            })
            .transpose()
            .map_err(|error| TokenizerError::SpecialTokens { reason: error.to_string() })?;
        Ok(Search { automaton, ids })
    }

    /// Calls `each` with every part in order. Parts of text are not empty.
    fn cut<'t>(&self, text: &'t str, mut each: impl FnMut(Part<'t>)) {
        let mut at = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            if at < found.start() {
                each(Part::Text(&text[at..found.start()]));
            }
            each(Part::Token(self.ids[found.pattern().as_usize()]));
            at = found.end();
        }
        if at < text.len() {
            each(Part::Text(&text[at..]));
        }
    }
}
