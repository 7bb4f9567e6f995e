//! What a template is given: messages in the shape that templates agree on, all their text marked.

use minijinja::Value;
use serde_json::{Map, Value as Json, json};

use super::error::ChatError;
use super::marks::{Author, Marker, UnusedMark};

/// A conversation to render.
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    /// Messages as the OpenAI API has them: objects with `role`, `content`, and whatever else the template
    /// reads.
    pub messages: &'a [Json],
    /// Tool definitions as the OpenAI API has them.
    pub tools: &'a [Json],
    /// Whether the prompt ends where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// Further variables for the template, such as `thinking`. `enable_thinking` is taken for the same.
    pub kwargs: &'a Map<String, Json>,
    /// What a template that asks for the date is told. Part of the prompt, so a resumed stream must give the
    /// same.
    pub now: jiff::civil::DateTime,
}

/// Roles are compared and pasted into control tokens by templates, so they can't be marked; only known ones
/// are let in.
const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];
/// Names that templates are given by other means.
pub(super) const RESERVED: [&str; 7] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
];
/// The same switch by two names.
const THINKING: [&str; 2] = ["thinking", "enable_thinking"];
const MAX_DEPTH: usize = 64;

/// How a template takes a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// As it comes: a string or a list of parts.
    Either,
    /// Only as a string: parts are joined by line ends.
    String,
    /// Only as a list of parts: a string becomes one.
    Parts,
}

/// The request's part of a template's variables.
pub(super) struct Variables {
    pub(super) values: Vec<(String, Value)>,
    /// The character that marks the request's text.
    pub(super) mark: char,
}

impl ChatInput<'_> {
    /// `unused` has seen the template's source.
    pub(super) fn variables(
        &self,
        marker: &Marker,
        mut unused: UnusedMark,
        content: Content,
    ) -> Result<Variables, ChatError> {
        let messages = self
            .messages
            .iter()
            .enumerate()
            .map(|(at, message)| normalise(at, message, content))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(name) = self.kwargs.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(ChatError::ReservedArgument { name: name.clone() });
        }
        for message in &messages {
            message.iter().try_for_each(|(key, value)| {
                unused.saw(key);
                see(value, &mut unused, 1)
            })?;
        }
        self.tools.iter().chain(self.kwargs.values()).try_for_each(|value| see(value, &mut unused, 1))?;
        let mark = unused.choose()?;

        let other = Marking { marker, mark, author: Author::Other };
        let tools: Vec<Value> = self.tools.iter().map(|tool| other.value(tool)).collect();
        let mut values = vec![
            ("messages".to_owned(), messages.into_iter().map(|message| other.message(&message)).collect()),
            // Templates ask `if tools`, and some `if tools is defined and tools is not none`.
            ("tools".to_owned(), if tools.is_empty() { Value::from(()) } else { Value::from(tools) }),
            ("add_generation_prompt".to_owned(), Value::from(self.add_generation_prompt)),
        ];
        values.extend(self.kwargs.iter().map(|(name, value)| (name.clone(), other.value(value))));
        if let Some(thinking) = THINKING.iter().find_map(|name| self.kwargs.get(*name)) {
            let missing = THINKING.iter().filter(|name| !self.kwargs.contains_key(**name));
            values.extend(missing.map(|name| ((*name).to_owned(), other.value(thinking))));
        }
        Ok(Variables { values, mark })
    }
}

/// Content as the template takes it, arguments of tool calls as objects: what templates are written for.
fn normalise(index: usize, message: &Json, wanted: Content) -> Result<Map<String, Json>, ChatError> {
    let mut message = message.as_object().cloned().ok_or(ChatError::NotAMessage { index })?;
    let role = message.get("role").and_then(Json::as_str).ok_or(ChatError::NotAMessage { index })?;
    if !ROLES.contains(&role) {
        return Err(ChatError::UnknownRole { index, role: role.to_owned(), known: ROLES.join(", ") });
    }
    if let Some(content) = message.get_mut("content") {
        let as_parts =
            |texts: &[&str]| texts.iter().map(|text| json!({"type": "text", "text": text})).collect();
        if let Some(given) = content.as_array() {
            let texts = given.iter().map(|part| text_of(index, part)).collect::<Result<Vec<_>, _>>()?;
            *content = match wanted {
                Content::Either | Content::Parts => as_parts(&texts),
                Content::String => Json::String(texts.join("\n")),
            };
        } else if let (Some(text), Content::Parts) = (content.as_str(), wanted) {
            *content = as_parts(&[text]);
        }
    }
    if let Some(calls) = message.get_mut("tool_calls").and_then(Json::as_array_mut) {
        for arguments in calls.iter_mut().filter_map(|call| call.get_mut("function")?.get_mut("arguments")) {
            // The API carries them as text. What isn't an object stays text: the model wrote it so.
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
            if let Some(parsed @ Json::Object(_)) = parsed {
                *arguments = parsed;
            }
        }
    }
    Ok(message)
}

fn text_of(index: usize, part: &Json) -> Result<&str, ChatError> {
    let text = part.as_str().or_else(|| part.get("text")?.as_str());
    text.ok_or_else(|| ChatError::UnsupportedPart {
        index,
        kind: part.get("type").and_then(Json::as_str).unwrap_or("unknown").to_owned(),
    })
}

/// Looks at every string of a value, and bounds its depth.
fn see(value: &Json, unused: &mut UnusedMark, depth: usize) -> Result<(), ChatError> {
    if depth > MAX_DEPTH {
        return Err(ChatError::TooDeep { limit: MAX_DEPTH });
    }
    match value {
        Json::String(text) => unused.saw(text),
        Json::Array(values) => values.iter().try_for_each(|value| see(value, unused, depth + 1))?,
        Json::Object(map) => map.iter().try_for_each(|(key, value)| {
            unused.saw(key);
            see(value, unused, depth + 1)
        })?,
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
    Ok(())
}

/// Turns JSON into the template's values, marking all text on the way.
struct Marking<'a> {
    marker: &'a Marker,
    mark: char,
    author: Author,
}

impl Marking<'_> {
    fn message(&self, message: &Map<String, Json>) -> Value {
        let author = match message.get("role").and_then(Json::as_str) {
            Some("assistant") => Author::Assistant,
            _ => Author::Other,
        };
        let marking = Marking { author, ..*self };
        let pairs = message.iter().map(|(key, value)| {
            // Known by now to be one of a few words.
            let role = value.as_str().filter(|_| key == "role").map(Value::from);
            (marking.text(key), role.unwrap_or_else(|| marking.value(value)))
        });
        Value::from_pairs(pairs)
    }

    fn value(&self, value: &Json) -> Value {
        match value {
            Json::Null => Value::from(()),
            Json::Bool(truth) => Value::from(*truth),
            Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), _, _) => Value::from(number),
                (_, Some(number), _) => Value::from(number),
                (_, _, number) => Value::from(number.unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::from(self.text(text)),
            Json::Array(values) => values.iter().map(|value| self.value(value)).collect(),
            Json::Object(map) => {
                Value::from_pairs(map.iter().map(|(key, value)| (self.text(key), self.value(value))))
            }
        }
    }

    fn text(&self, text: &str) -> String {
        self.marker.mark(text, self.author, self.mark)
    }
}
