//! Pre-tokenizers: how a text falls into the pieces that BPE never joins across.
//!
//! Their published patterns end in `\s+(?!\S)|\s+`: a run of blanks leaves its last one to the word that
//! follows. That is done here by hand, which leaves patterns that match in linear time whatever the text.

use std::ops::Range;

use regex::Regex;

use crate::error::TokenizerError;

/// The contractions of English, in any case.
const CONTRACTIONS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";

/// Cuts a text into pieces.
#[derive(Debug, Clone)]
pub(crate) struct Splitter {
    /// Each cuts the pieces of the one before. What a pattern doesn't match is a piece, too.
    stages: Vec<Regex>,
    blanks: Blanks,
}

/// What `\s+(?!\S)` may give up to the word that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blanks {
    /// Any blank.
    WithLineEnds,
    /// No line end: those are pieces of their own, by `\s*[\r\n]+`.
    WithoutLineEnds,
}

/// What the names in `tokenizer.ggml.pre` stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreTokenizer {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
    DeepSeekV3,
    KimiK2,
}

const NAMES: [(&str, PreTokenizer); 10] = [
    ("kimi-k2", PreTokenizer::KimiK2),
    ("llama-bpe", PreTokenizer::Llama3),
    ("llama3", PreTokenizer::Llama3),
    ("llama-v3", PreTokenizer::Llama3),
    ("qwen2", PreTokenizer::Qwen2),
    ("deepseek-r1-qwen", PreTokenizer::Qwen2),
    ("deepseek-v3", PreTokenizer::DeepSeekV3),
    ("smollm", PreTokenizer::SmolLm),
    ("gpt-2", PreTokenizer::Gpt2),
    ("gpt2", PreTokenizer::Gpt2),
];

impl PreTokenizer {
    pub(crate) fn from_name(pre: &str) -> Result<PreTokenizer, TokenizerError> {
        NAMES.iter().find(|(name, _)| *name == pre).map(|&(_, found)| found).ok_or_else(|| {
            TokenizerError::UnsupportedPreTokenizer {
                pre: pre.to_owned(),
                supported: NAMES.map(|(name, _)| name).join(", "),
            }
        })
    }

    /// Whether a piece that is a token is taken as it is, without looking at merges.
    pub(crate) fn whole_pieces_first(self) -> bool {
        matches!(self, PreTokenizer::Llama3 | PreTokenizer::KimiK2)
    }

    /// Whether a prompt starts with BOS where the file doesn't say.
    pub(crate) fn adds_bos(self) -> bool {
        self == PreTokenizer::Llama3
    }

    fn patterns(self) -> Vec<String> {
        match self {
            PreTokenizer::Gpt2 => vec![GPT2.to_owned()],
            PreTokenizer::SmolLm => vec![r"\p{N}".to_owned(), GPT2.to_owned()],
            PreTokenizer::Llama3 => vec![format!(
                r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+"
            )],
            PreTokenizer::Qwen2 => vec![format!(
                r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+"
            )],
            PreTokenizer::DeepSeekV3 => vec![
                r"\p{N}{1,3}".to_owned(),
                r"[一-龥぀-ゟ゠-ヿ]+".to_owned(),
                format!(
                    r"[{}][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+",
                    regex::escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
                ),
            ],
            PreTokenizer::KimiK2 => {
                // Words end where case turns from lower to upper, and Han runs stand alone.
                let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]";
                let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]";
                let lead = r"[^\r\n\p{L}\p{N}]?";
                vec![format!(
                    r"\p{{Han}}+|{lead}{upper}*{lower}+{CONTRACTIONS}?|{lead}{upper}+{lower}*{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+"
                )]
            }
        }
    }

    pub(crate) fn splitter(self) -> Splitter {
        let compile =
            |pattern: String| Regex::new(&pattern).expect("the patterns are constants that tests compile");
        let blanks = match self {
            PreTokenizer::Gpt2 | PreTokenizer::SmolLm => Blanks::WithLineEnds,
            _ => Blanks::WithoutLineEnds,
        };
        Splitter { stages: self.patterns().into_iter().map(compile).collect(), blanks }
    }
}

impl Splitter {
    /// Calls `each` with every piece in order; together they are the whole text.
    pub(crate) fn for_each<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        self.cut(&self.stages, text, each);
    }

    fn cut<'t>(&self, stages: &[Regex], text: &'t str, each: &mut impl FnMut(&'t str)) {
        let Some((stage, later)) = stages.split_first() else {
            if !text.is_empty() {
                each(text);
            }
            return;
        };
        let mut at = 0;
        while let Some(found) = stage.find_at(text, at) {
            let found = self.leave_last_blank(text, found.range());
            self.cut(later, &text[at..found.start], each);
            self.cut(later, &text[found.clone()], each);
            at = found.end;
        }
        self.cut(later, &text[at..], each);
    }

    /// `\s+(?!\S)|\s+`: blanks before something visible give up their last one, unless it is the only one.
    fn leave_last_blank(&self, text: &str, found: Range<usize>) -> Range<usize> {
        let run = &text[found.clone()];
        let mut before_last = run.chars();
        let Some(last) = before_last.next_back() else { return found };
        let movable = last.is_whitespace()
            && (self.blanks == Blanks::WithLineEnds || !matches!(last, '\r' | '\n'))
            && !before_last.as_str().is_empty()
            && before_last.all(char::is_whitespace)
            && text[found.end..].chars().next().is_some_and(|next| !next.is_whitespace());
        if movable { found.start..found.end - last.len_utf8() } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        PreTokenizer::from_name(pre).unwrap().splitter().for_each(text, &mut |piece| pieces.push(piece));
        pieces
    }

    /// The fixture's pieces come from other implementations of the published patterns: see `tests/support`.
    #[test]
    fn pieces_are_the_reference_ones() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/golden.json")).unwrap();
        let mut count = 0;
        for (pre, fixture) in golden.as_object().unwrap() {
            for case in fixture["cases"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let expected: Vec<&str> =
                    case["pieces"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
                assert_eq!(pieces(pre, text), expected, "{pre}: {text:?}");
                count += 1;
            }
        }
        assert!(count > 100);
    }

    #[test]
    fn kimi_splits_words_where_case_turns() {
        assert_eq!(pieces("kimi-k2", "ChatGPT's"), ["Chat", "GPT's"]);
        assert_eq!(pieces("llama-bpe", "ChatGPT's"), ["ChatGPT", "'s"]);
    }

    #[test]
    fn kimi_keeps_han_runs_apart_from_other_letters() {
        assert_eq!(pieces("kimi-k2", "用Rust写テスト和ab"), ["用", "Rust", "写", "テスト", "和", "ab"]);
        assert_eq!(pieces("qwen2", "用Rust写テスト和ab"), ["用Rust写テスト和ab"]);
    }

    #[test]
    fn every_supported_name_compiles() {
        for (name, pre) in NAMES {
            assert_eq!(PreTokenizer::from_name(name), Ok(pre));
            assert_eq!(pieces(name, ""), [""; 0]);
        }
    }
}
