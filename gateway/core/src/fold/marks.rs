//! Strings that mean something: stop strings, and the markers of thoughts and tool calls.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Stop,
    EndOfThoughts,
    Section,
    EndOfSection,
    Call,
    Arguments,
    EndOfCall,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern<'a> {
    pub(super) text: &'a str,
    pub(super) mark: Mark,
}

const fn mark(text: &'static str, mark: Mark) -> Pattern<'static> {
    Pattern { text, mark }
}

pub(super) const END_OF_THOUGHTS: Pattern<'static> = mark("</think>", Mark::EndOfThoughts);
// Kimi writes the plural; some of its answers have the singular.
const SECTION: [Pattern<'static>; 2] =
    [mark("<|tool_calls_section_begin|>", Mark::Section), mark("<|tool_call_section_begin|>", Mark::Section)];
const END: Pattern<'static> = mark("<|tool_calls_section_end|>", Mark::EndOfSection);
const END_SINGULAR: Pattern<'static> = mark("<|tool_call_section_end|>", Mark::EndOfSection);
const CALL: Pattern<'static> = mark("<|tool_call_begin|>", Mark::Call);
pub(super) const IN_SECTION: [Pattern<'static>; 3] = [CALL, END, END_SINGULAR];
pub(super) const IN_HEAD: [Pattern<'static>; 4] = [
    mark("<|tool_call_argument_begin|>", Mark::Arguments),
    mark("<|tool_call_end|>", Mark::EndOfCall),
    END,
    END_SINGULAR,
];
pub(super) const IN_ARGUMENTS: [Pattern<'static>; 3] =
    [mark("<|tool_call_end|>", Mark::EndOfCall), END, END_SINGULAR];

pub(super) fn sections<'a>(tools: bool) -> impl Iterator<Item = Pattern<'a>> {
    SECTION.into_iter().filter(move |_| tools)
}

pub(super) struct Found {
    pub(super) range: Range<usize>,
    pub(super) mark: Mark,
}

/// The pattern that is complete first, and of those the longest: what reading byte by byte would have met.
pub(super) fn first(text: &str, patterns: &[Pattern<'_>]) -> Option<Found> {
    patterns
        .iter()
        .filter_map(|pattern| {
            let start = text.find(pattern.text)?;
            Some(Found { range: start..start + pattern.text.len(), mark: pattern.mark })
        })
        .min_by_key(|found| (found.range.end, found.range.start))
}

/// How many bytes at the end of `text` may be the beginning of a pattern.
pub(super) fn held(text: &str, patterns: &[Pattern<'_>]) -> usize {
    let longest = patterns.iter().map(|pattern| pattern.text.len()).max().unwrap_or(0);
    text.char_indices()
        .map(|(at, _)| &text[at..])
        .skip_while(|end| end.len() >= longest)
        .find(|end| patterns.iter().any(|pattern| pattern.text.starts_with(end)))
        .map_or(0, str::len)
}
