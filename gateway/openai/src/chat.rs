//! The shapes of `/v1/chat/completions`.

use serde::Serialize;
use tandem_gateway_core::fold::ToolCallDelta;

use crate::answer::{Envelope, Tandem, UsageBody, finish_name};
use crate::choice::Step;
use crate::logprobs::ChatLogprobs;

pub(crate) const CHUNK: &str = "chat.completion.chunk";

#[derive(Serialize)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A tool call, or a piece of one: later pieces have neither id nor name.
#[derive(Debug, Serialize)]
struct ToolCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Debug, Default, Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ToolCall {
    fn begun(index: Option<u32>, id: String, name: String) -> Self {
        let function = Function { name: Some(name), arguments: String::new() };
        Self { index, id: Some(id), kind: Some("function"), function }
    }
}

/// One entry per call that the step touched.
fn pieces(deltas: Vec<ToolCallDelta>) -> Vec<ToolCall> {
    let mut calls: Vec<ToolCall> = Vec::new();
    for delta in deltas {
        match delta {
            ToolCallDelta::Begin { index, id, name } => calls.push(ToolCall::begun(Some(index), id, name)),
            ToolCallDelta::Arguments { index, text } => match calls.last_mut() {
                Some(call) if call.index == Some(index) => call.function.arguments += &text,
                _ => {
                    let function = Function { name: None, arguments: text };
                    calls.push(ToolCall { index: Some(index), id: None, kind: None, function });
                }
            },
        }
    }
    calls
}

fn chunk(envelope: &Envelope, choice: ChunkChoice, tandem: Option<Tandem>) -> String {
    envelope.body(CHUNK, [choice], None, tandem)
}

pub(crate) fn first_chunk(envelope: &Envelope, index: u32, tandem: Tandem) -> String {
    let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
    chunk(envelope, ChunkChoice { index, delta, logprobs: None, finish_reason: None }, Some(tandem))
}

/// What a step adds, and the reason when it is the last: chunks of their own, as OpenAI sends them.
pub(crate) fn chunks(envelope: &Envelope, step: Step, tandem: Option<Tandem>) -> Vec<String> {
    let index = step.choice;
    let finish_reason = step.delta.finish.map(finish_name);
    let logprobs = step.token.filter(|_| envelope.logprobs).map(|token| {
        let mut logprobs = ChatLogprobs::default();
        logprobs.push(&token);
        logprobs
    });
    let delta = Delta {
        role: None,
        content: Some(step.delta.text).filter(|text| !text.is_empty()),
        reasoning_content: Some(step.delta.reasoning).filter(|text| !text.is_empty()),
        tool_calls: pieces(step.delta.tool_calls),
    };
    let silent = delta.content.is_none() && delta.reasoning_content.is_none() && delta.tool_calls.is_empty();
    let mut chunks = Vec::new();
    if !silent || logprobs.is_some() || tandem.is_some() {
        chunks.push(chunk(envelope, ChunkChoice { index, delta, logprobs, finish_reason: None }, tandem));
    }
    if finish_reason.is_some() {
        let delta = Delta::default();
        chunks.push(chunk(envelope, ChunkChoice { index, delta, logprobs: None, finish_reason }, None));
    }
    chunks
}

/// The answer as one body.
pub(crate) struct Whole {
    choices: Vec<WholeChoice>,
}

#[derive(Serialize)]
struct WholeChoice {
    index: u32,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    refusal: Option<()>,
}

impl Whole {
    pub(crate) fn new(envelope: &Envelope) -> Self {
        let choice = |index| WholeChoice {
            index,
            message: Message {
                role: "assistant",
                content: None,
                reasoning_content: String::new(),
                tool_calls: Vec::new(),
                refusal: None,
            },
            logprobs: envelope.logprobs.then(ChatLogprobs::default),
            finish_reason: None,
        };
        Self { choices: (0..envelope.choices).map(choice).collect() }
    }

    pub(crate) fn add(&mut self, step: Step) {
        let choice = &mut self.choices[step.choice as usize];
        if let (Some(logprobs), Some(token)) = (&mut choice.logprobs, &step.token) {
            logprobs.push(token);
        }
        let message = &mut choice.message;
        if !step.delta.text.is_empty() {
            message.content.get_or_insert_default().push_str(&step.delta.text);
        }
        message.reasoning_content += &step.delta.reasoning;
        for call in step.delta.tool_calls {
            match call {
                ToolCallDelta::Begin { id, name, .. } => {
                    message.tool_calls.push(ToolCall::begun(None, id, name))
                }
                ToolCallDelta::Arguments { text, .. } => {
                    if let Some(call) = message.tool_calls.last_mut() {
                        call.function.arguments += &text;
                    }
                }
            }
        }
        choice.finish_reason = step.delta.finish.map(finish_name).or(choice.finish_reason);
    }

    pub(crate) fn body(mut self, envelope: &Envelope, usage: UsageBody, tandem: Option<Tandem>) -> String {
        for choice in &mut self.choices {
            if choice.message.tool_calls.is_empty() {
                choice.message.content.get_or_insert_default();
            }
        }
        envelope.body("chat.completion", self.choices, Some(usage), tandem)
    }
}
