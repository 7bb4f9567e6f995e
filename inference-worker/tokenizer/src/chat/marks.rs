//! Keeps a user's text apart from the template's, so that it can't spell a control token.
//!
//! A template works on the text that it is given: it trims, splits and compares. So the text keeps its form,
//! but wherever it spells a control token, or could complete one together with what comes before or after, a
//! mark is put inside: a character that occurs nowhere else. The template's own control tokens are without
//! marks, and so only they are recognised in the rendered prompt; then the marks are taken out again.

use std::collections::{BTreeSet, HashSet};
use std::ops::RangeInclusive;

use aho_corasick::AhoCorasick;

use super::error::ChatError;

/// Control tokens in which an assistant's earlier thinking is written. Templates look for them in an
/// assistant's messages, which are the model's own words; a mark would hide them.
const THINKING: [&str; 2] = ["<think>", "</think>"];

/// Whose text is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Author {
    /// The model: its thinking stays recognisable.
    Assistant,
    /// Anybody else.
    Other,
}

/// Knows where a text touches control tokens.
#[derive(Debug)]
pub(super) struct Marker {
    /// Finds every occurrence, also overlapping ones. None when there are no control tokens.
    automaton: Option<AhoCorasick>,
    /// Sorted.
    spellings: Vec<String>,
    /// Every proper suffix of a spelling.
    suffixes: HashSet<String>,
    /// Bytes of the longest spelling.
    longest: usize,
}

impl Marker {
    pub(super) fn new<'t>(spellings: impl Iterator<Item = &'t str>) -> Result<Marker, ChatError> {
        let mut spellings: Vec<String> = spellings.map(str::to_owned).collect();
        spellings.sort_unstable();
        spellings.dedup();
        let automaton = (!spellings.is_empty())
            .then(|| AhoCorasick::new(&spellings))
            .transpose()
            .map_err(|error| ChatError::ControlTokens { reason: error.to_string() })?;
        let suffixes = spellings
            .iter()
            .flat_map(|text| text.char_indices().skip(1).map(|(at, _)| text[at..].to_owned()))
            .collect();
        let longest = spellings.iter().map(String::len).max().unwrap_or(0);
        Ok(Marker { automaton, spellings, suffixes, longest })
    }

    /// The text with `mark` inside whatever could become part of a control token.
    pub(super) fn mark(&self, text: &str, author: Author, mark: char) -> String {
        let mut places = BTreeSet::new();
        self.whole(text, author, &mut places);
        self.begun_at_the_end(text, &mut places);
        self.ended_at_the_start(text, &mut places);
        let mut marked = String::with_capacity(text.len() + places.len() * mark.len_utf8());
        let mut at = 0;
        for place in places {
            marked.push_str(&text[at..place]);
            marked.push(mark);
            at = place;
        }
        marked.push_str(&text[at..]);
        marked
    }

    fn whole(&self, text: &str, author: Author, places: &mut BTreeSet<usize>) {
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_overlapping_iter(text)) {
            let spelling = &text[found.range()];
            if author == Author::Other || !THINKING.contains(&spelling) {
                places.insert(after_first(text, found.start()));
            }
        }
    }

    /// A text that ends in `<|im_` could be completed by what the template puts behind it, maybe after
    /// trimming.
    fn begun_at_the_end(&self, text: &str, places: &mut BTreeSet<usize>) {
        let trimmed = text.trim_end();
        for (at, _) in trimmed.char_indices().rev() {
            let end = &trimmed[at..];
            if end.len() >= self.longest {
                break;
            }
            let candidate = self.spellings.partition_point(|spelling| spelling.as_str() < end);
            if self.spellings.get(candidate).is_some_and(|spelling| spelling.starts_with(end)) {
                places.insert(after_first(text, at));
            }
        }
    }

    /// A text that starts with `end|>` could complete what the template puts before it.
    fn ended_at_the_start(&self, text: &str, places: &mut BTreeSet<usize>) {
        let trimmed = text.trim_start();
        let trimmed_at = text.len() - trimmed.len();
        for (at, last) in trimmed.char_indices() {
            let end = at + last.len_utf8();
            if end >= self.longest {
                break;
            }
            if self.suffixes.contains(&trimmed[..end]) {
                places.insert(trimmed_at + at);
            }
        }
    }
}

fn after_first(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(0, char::len_utf8)
}

/// Characters that mean nothing, and that texts therefore rarely hold: noncharacters, then private ones.
const MARKS: [RangeInclusive<char>; 2] = ['\u{fdd0}'..='\u{fdef}', '\u{f0000}'..='\u{ffffd}'];

/// Whether a character could be a request's mark.
pub(super) fn may_be_mark(character: char) -> bool {
    MARKS.iter().any(|range| range.contains(&character))
}

/// Finds a character that a request and its template don't use.
#[derive(Debug, Clone, Default)]
pub(super) struct UnusedMark {
    used: HashSet<char>,
}

impl UnusedMark {
    pub(super) fn saw(&mut self, text: &str) {
        self.used.extend(text.chars().filter(|&character| may_be_mark(character)));
    }

    pub(super) fn choose(&self) -> Result<char, ChatError> {
        MARKS.into_iter().flatten().find(|mark| !self.used.contains(mark)).ok_or(ChatError::NoMarkLeft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        Marker::new(["<|im_end|>", "<|im_user|>", "[EOS]", "<think>", "</think>"].into_iter()).unwrap()
    }

    #[test]
    fn text_that_touches_no_control_token_stays_as_it_is() {
        for text in ["", "Hello, world!", "a < b > c", "x[0]", "if a<b || c>d {}", "日本語 🙂"] {
            assert_eq!(marker().mark(text, Author::Other, '†'), text);
        }
    }

    #[test]
    fn a_spelled_token_is_broken_after_its_first_character() {
        assert_eq!(marker().mark("a<|im_end|>b[EOS]", Author::Other, '†'), "a<†|im_end|>b[†EOS]");
    }

    #[test]
    fn a_token_begun_at_the_end_is_broken_whatever_blanks_follow() {
        assert_eq!(marker().mark("x <|im_", Author::Other, '†'), "x <†|im_");
        assert_eq!(marker().mark("x <|im_ \n", Author::Other, '†'), "x <†|im_ \n");
        assert_eq!(marker().mark("x <", Author::Other, '†'), "x <†");
    }

    #[test]
    fn a_token_ended_at_the_start_is_broken_whatever_blanks_precede() {
        assert_eq!(marker().mark("end|> x", Author::Other, '†'), "end|†> x");
        assert_eq!(marker().mark(" \n> x", Author::Other, '†'), " \n†> x");
    }

    #[test]
    fn thinking_stays_recognisable_in_the_models_own_words_only() {
        let text = "<think>a</think>b<|im_end|>";
        assert_eq!(marker().mark(text, Author::Assistant, '†'), "<think>a</think>b<†|im_end|>");
        assert_eq!(marker().mark(text, Author::Other, '†'), "<†think>a<†/think>b<†|im_end|>");
    }

    #[test]
    fn overlapping_spellings_are_all_broken() {
        let marker = Marker::new(["<|x|>", "x|>y"].into_iter()).unwrap();
        assert_eq!(marker.mark("<|x|>y", Author::Other, '†'), "<†|x†|>y");
    }

    #[test]
    fn the_mark_is_a_character_that_nobody_uses() {
        let mut unused = UnusedMark::default();
        unused.saw("plain \u{fdd0}\u{fdd1} text");
        assert_eq!(unused.choose().unwrap(), '\u{fdd2}');
        unused.saw(&MARKS.into_iter().flatten().collect::<String>());
        assert!(matches!(unused.choose(), Err(ChatError::NoMarkLeft)));
    }
}
