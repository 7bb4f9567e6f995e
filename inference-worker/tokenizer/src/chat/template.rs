//! The template itself: compiled once, rendered per request.

use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json, json};
use tandem_gguf::Metadata;

use super::error::ChatError;
use super::input::{ChatInput, Content, Variables};
use super::json::tojson;
use super::list_literals;
use super::marks::{Marker, UnusedMark};
use super::mutable_list::MutableList;
use crate::bpe::Scratch;
use crate::tokenizer::Tokenizer;

const KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat";
/// Steps of the template engine: some hundred times what a conversation of a thousand messages takes.
const FUEL: u64 = 20_000_000;
/// Calls of macros within macros.
const RECURSION: usize = 100;
const MAX_PROMPT_BYTES: usize = 64 << 20;

/// What is used for files without a template of their own.
const FALLBACK: &str = "\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";

/// A model's chat template with the tokenizer that its prompts are for.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokenizer: Arc<Tokenizer>,
    marker: Marker,
    /// What the template's source uses of the characters that could be marks.
    unused: UnusedMark,
    is_fallback: bool,
    knows_tools: bool,
    content: Content,
}

/// A prompt, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The prompt's tokens, BOS included where the model wants one.
    pub tokens: Vec<u32>,
    /// The prompt's text, control tokens spelled out. For people and tests: encoding it again may give other
    /// tokens.
    pub text: String,
    /// Whether the prompt ends in an open `<think>`, so that the answer starts with thinking.
    pub opens_thinking: bool,
    /// Whether the file has no template, and a generic one was used.
    pub used_fallback: bool,
}

impl ChatTemplate {
    /// Compiles the template of a file, or a ChatML one when it has none.
    ///
    /// # Errors
    /// When the template isn't one, or the vocabulary's control tokens are unusable.
    pub fn from_metadata(metadata: &Metadata, tokenizer: Arc<Tokenizer>) -> Result<ChatTemplate, ChatError> {
        let own = metadata.find::<&str>(KEY)?;
        let source = own.unwrap_or(FALLBACK);
        let marker = Marker::new(tokenizer.control_spellings())?;
        let mut unused = UnusedMark::default();
        unused.saw(source);

        let mut environment = environment();
        for (name, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
            let text =
                id.map(|id| String::from_utf8_lossy(tokenizer.token_bytes_with_control(id)).into_owned());
            environment.add_global(name, text.unwrap_or_default());
        }
        environment.add_template_owned(NAME, list_literals::rewrite(source)).map_err(ChatError::Compile)?;
        let template = environment.get_template(NAME).map_err(ChatError::Compile)?;
        let knows_tools = template.undeclared_variables(false).contains("tools");
        let is_fallback = own.is_none();
        let content = Content::Either;
        let mut template =
            ChatTemplate { environment, tokenizer, marker, unused, is_fallback, knows_tools, content };
        template.content = template.probe_content();
        Ok(template)
    }

    /// Finds out how the template takes content, by what it makes of one text in both forms. A template that
    /// can't walk over parts prints them with brackets and quotes, or fails; one that only walks takes a
    /// string for a list of characters.
    fn probe_content(&self) -> Content {
        const PROBE: &str = "what a message says";
        let render = |content: Json| {
            let input = ChatInput {
                messages: &[json!({"role": "user", "content": content})],
                tools: &[],
                add_generation_prompt: false,
                kwargs: &Map::new(),
                now: jiff::civil::DateTime::default(),
            };
            self.text(&input, Content::Either).ok().map(|(text, _)| text).filter(|text| text.contains(PROBE))
        };
        let from_string = render(json!(PROBE));
        let from_parts = render(json!([{"type": "text", "text": PROBE}]));
        match (from_string, from_parts) {
            (None, Some(_)) => Content::Parts,
            (Some(from_string), Some(from_parts)) if from_string == from_parts => Content::Either,
            _ => Content::String,
        }
    }

    /// Whether the file has no template of its own.
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// Whether the template has a place for tool definitions.
    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// Renders a conversation. Control tokens come from the template's own text only: the same characters in
    /// a message are text.
    ///
    /// # Errors
    /// When the conversation isn't one that the template takes. [`ChatError::Render`] and
    /// [`ChatError::TooLong`] speak of the template or of a request too large for it, all others of what to
    /// change in the request.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<RenderedPrompt, ChatError> {
        if !input.tools.is_empty() && !self.knows_tools {
            return Err(ChatError::ToolsUnsupported);
        }
        let (marked, mark) = self.text(input, self.content)?;
        let tokens = self.tokens(&marked, mark);
        let text = without(&marked, mark);
        let opens_thinking = input.add_generation_prompt && text.trim_end().ends_with("<think>");
        Ok(RenderedPrompt { tokens, text, opens_thinking, used_fallback: self.is_fallback })
    }

    /// The prompt's text with the request's part of it marked, and the mark.
    fn text(&self, input: &ChatInput<'_>, wanted: Content) -> Result<(String, char), ChatError> {
        let Variables { mut values, mark } = input.variables(&self.marker, self.unused.clone(), wanted)?;
        let now = input.now;
        let strftime_now = move |format: &str| {
            jiff::fmt::strtime::format(format, now).map_err(|error| {
                Error::new(ErrorKind::InvalidOperation, "strftime_now got an unusable format")
                    .with_source(error)
            })
        };
        values.push(("strftime_now".to_owned(), Value::from_function(strftime_now)));
        let template = self.environment.get_template(NAME).map_err(ChatError::Render)?;
        let mut out = Bounded::default();
        let outcome = template.render_captured_to(Value::from_pairs(values), &mut out).map(|_| ());
        outcome.map_err(|error| explain(error, mark, &out))?;
        Ok((String::from_utf8(out.bytes).expect("templates write whole strings"), mark))
    }

    fn tokens(&self, marked: &str, mark: char) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(marked.len() / 3);
        let mut scratch = Scratch::default();
        self.tokenizer.encode_around_control(
            marked,
            |text, tokens| self.tokenizer.encode_text(&without(text, mark), &mut scratch, tokens),
            &mut tokens,
        );
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        tokens
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("is_fallback", &self.is_fallback).finish_non_exhaustive()
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // Debug information would carry messages into error texts, and so into logs.
    environment.set_debug(false);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are valid"));
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", |value: &Value, options: Kwargs| tojson(value, options));
    environment.add_filter("list", |value: &Value| MutableList::from_value(value));
    environment.add_function(list_literals::FUNCTION, |items: &Value| MutableList::from_value(items));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "the template raised an exception")
            .with_source(Raised(message)))
    });
    environment
}

/// What a template says when it refuses a conversation.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn explain(error: Error, mark: char, out: &Bounded) -> ChatError {
    if out.is_full {
        return ChatError::TooLong { limit: MAX_PROMPT_BYTES };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(one) = cause {
        if let Some(Raised(message)) = one.downcast_ref() {
            return ChatError::Refused { message: without(message, mark) };
        }
        cause = one.source();
    }
    ChatError::Render(error)
}

fn without(text: &str, mark: char) -> String {
    text.replace(mark, "")
}

/// Collects the prompt up to a limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
            self.is_full = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
