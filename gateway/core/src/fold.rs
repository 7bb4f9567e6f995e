//! From committed tokens to what a client reads: text, thoughts, tool calls and usage.
//!
//! The result rests on the tokens alone: however they arrive, and whoever spoke them, the deltas concatenate to the
//! same. Text is held back while it may still turn out to be part of a character, a stop string or a marker.

mod marks;
mod utf8;

use crate::{FinishReason, Prompt, Token};
use marks::{Mark, Pattern};
use utf8::Utf8;

/// How to read the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// The output ends before the first of these that is complete. They are looked for in the answer, not in thoughts
    /// or tool calls. Empty strings are not allowed.
    pub stop: Vec<String>,
    /// Split off thoughts between `<think>` and `</think>`.
    pub thoughts: bool,
    /// Read tool calls. The markers that Kimi writes are known; a worker gives them as text, whatever kind of token
    /// its tokenizer takes them for.
    pub tools: bool,
}

/// What a token, or the end, added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Of the answer.
    pub text: String,
    /// Of the thoughts.
    pub reasoning: String,
    /// Of tool calls, in order.
    pub tool_calls: Vec<ToolCallDelta>,
    /// The choice is over: a stop string was met, or [`Fold::finish`] was called.
    pub finish: Option<FinishReason>,
}

impl Delta {
    /// Whether a client would see nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A piece of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolCallDelta {
    /// A call begins.
    Begin {
        /// Counts the calls of this answer from 0.
        index: u32,
        /// As the model wrote it. It must come back verbatim: the model counts calls across the conversation by it.
        id: String,
        /// The function's name.
        name: String,
    },
    /// More of its arguments, as JSON text.
    Arguments {
        /// Of the call.
        index: u32,
        /// The piece.
        text: String,
    },
}

/// Tokens counted, as OpenAI names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the prompt.
    pub prompt_tokens: u32,
    /// Of the prompt, from a prefix cache.
    pub cached_tokens: u32,
    /// In the output: everything committed, thoughts, stop strings and the turn's end included.
    pub completion_tokens: u32,
    /// Of the output, those that began inside thoughts.
    pub reasoning_tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing but white space so far: `<think>` may still come.
    Start,
    Answer,
    Thoughts,
    /// Between tool calls.
    Section,
    /// Before a call's arguments.
    Head,
    Arguments,
}

/// The fold over one choice.
#[derive(Debug)]
pub struct Fold {
    format: Format,
    mode: Mode,
    utf8: Utf8,
    /// Decoded and not given out yet.
    pending: String,
    head: String,
    calls: u32,
    over: bool,
    usage: Usage,
}

impl Fold {
    /// A fold over a choice that has said nothing.
    #[must_use]
    pub fn new(format: Format) -> Self {
        debug_assert!(
            format.stop.iter().all(|stop| !stop.is_empty()),
            "an empty stop string stops everything"
        );
        let mode = if format.thoughts { Mode::Start } else { Mode::Answer };
        Self {
            format,
            mode,
            utf8: Utf8::default(),
            pending: String::new(),
            head: String::new(),
            calls: 0,
            over: false,
            usage: Usage::default(),
        }
    }

    /// A worker took the request. Called again before the first token, it replaces what was said.
    pub fn begin(&mut self, prompt: &Prompt) {
        self.usage.prompt_tokens = prompt.tokens;
        self.usage.cached_tokens = prompt.cached_tokens;
        if self.format.thoughts && self.usage.completion_tokens == 0 {
            self.mode = if prompt.opens_thinking { Mode::Thoughts } else { Mode::Start };
        }
    }

    /// The next token. After a stop string, tokens add nothing.
    pub fn push(&mut self, token: &Token) -> Delta {
        let mut delta = Delta::default();
        if self.over {
            return delta;
        }
        self.usage.completion_tokens += 1;
        self.usage.reasoning_tokens += u32::from(self.mode == Mode::Thoughts);
        self.utf8.push(&token.bytes, &mut self.pending);
        self.read(&mut delta);
        delta
    }

    /// The end: gives out what was held back.
    pub fn finish(&mut self, reason: FinishReason) -> Delta {
        let mut delta = Delta::default();
        if self.over {
            return delta;
        }
        self.utf8.finish(&mut self.pending);
        if self.mode == Mode::Start {
            self.mode = Mode::Answer;
        }
        self.read(&mut delta);
        if !self.over {
            let rest = std::mem::take(&mut self.pending);
            self.give(&rest, &mut delta);
            self.end(reason, &mut delta);
        }
        delta
    }

    /// Tokens so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    fn end(&mut self, reason: FinishReason, delta: &mut Delta) {
        self.over = true;
        delta.finish = Some(match reason {
            FinishReason::Stop if self.calls > 0 => FinishReason::ToolCalls,
            other => other,
        });
    }

    fn read(&mut self, delta: &mut Delta) {
        while !self.over {
            if self.mode == Mode::Start {
                match opening(&self.pending) {
                    Opening::Undecided => return,
                    Opening::Thoughts { after } => {
                        self.pending.drain(..after);
                        self.mode = Mode::Thoughts;
                    }
                    Opening::Answer => self.mode = Mode::Answer,
                }
            }
            let patterns = self.patterns();
            let found = marks::first(&self.pending, &patterns);
            let clear = found.as_ref().map_or_else(
                || self.pending.len() - marks::held(&self.pending, &patterns),
                |found| found.range.start,
            );
            let next = found.map(|found| (found.mark, found.range.end));
            let text: String = self.pending.drain(..clear).collect();
            self.give(&text, delta);
            let Some((mark, end)) = next else { return };
            self.pending.drain(..end - clear);
            self.pass(mark, delta);
        }
    }

    fn patterns(&self) -> Vec<Pattern<'_>> {
        let stops = self.format.stop.iter().map(|stop| Pattern { text: stop, mark: Mark::Stop });
        match self.mode {
            Mode::Start | Mode::Answer => stops.chain(marks::sections(self.format.tools)).collect(),
            Mode::Thoughts => {
                [marks::END_OF_THOUGHTS].into_iter().chain(marks::sections(self.format.tools)).collect()
            }
            Mode::Section => marks::IN_SECTION.to_vec(),
            Mode::Head => marks::IN_HEAD.to_vec(),
            Mode::Arguments => marks::IN_ARGUMENTS.to_vec(),
        }
    }

    fn pass(&mut self, mark: Mark, delta: &mut Delta) {
        match mark {
            Mark::Stop => self.end(FinishReason::Stop, delta),
            Mark::EndOfThoughts | Mark::EndOfSection => self.mode = Mode::Answer,
            Mark::Section | Mark::EndOfCall => self.mode = Mode::Section,
            Mark::Call => {
                self.head.clear();
                self.mode = Mode::Head;
            }
            Mark::Arguments => {
                let id = self.head.trim().to_owned();
                let name = id.strip_prefix("functions.").unwrap_or(&id);
                let name = name.rsplit_once(':').map_or(name, |(name, _)| name).to_owned();
                delta.tool_calls.push(ToolCallDelta::Begin { index: self.calls, id, name });
                self.calls += 1;
                self.mode = Mode::Arguments;
            }
        }
    }

    /// Text that is no mark and no part of one.
    fn give(&mut self, text: &str, delta: &mut Delta) {
        if text.is_empty() {
            return;
        }
        match self.mode {
            Mode::Start | Mode::Answer => delta.text.push_str(text),
            Mode::Thoughts => delta.reasoning.push_str(text),
            // White space between calls.
            Mode::Section => {}
            Mode::Head => self.head.push_str(text),
            Mode::Arguments => {
                let index = self.calls - 1;
                delta.tool_calls.push(ToolCallDelta::Arguments { index, text: text.to_owned() });
            }
        }
    }
}

enum Opening {
    Undecided,
    Thoughts { after: usize },
    Answer,
}

/// Whether an output that begins so opens thoughts by itself.
fn opening(text: &str) -> Opening {
    const THINK: &str = "<think>";
    let trimmed = text.trim_start();
    if trimmed.starts_with(THINK) {
        Opening::Thoughts { after: text.len() - trimmed.len() + THINK.len() }
    } else if THINK.starts_with(trimmed) {
        Opening::Undecided
    } else {
        Opening::Answer
    }
}

#[cfg(test)]
mod tests;
