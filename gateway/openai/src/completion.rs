//! The shapes of `/v1/completions`.

use serde::Serialize;

use crate::answer::{Envelope, Tandem, UsageBody, finish_name};
use crate::choice::Step;
use crate::logprobs::CompletionLogprobs;

pub(crate) const OBJECT: &str = "text_completion";

#[derive(Default, Serialize)]
struct TextChoice {
    index: u32,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

fn chunk(envelope: &Envelope, choice: TextChoice, tandem: Option<Tandem>) -> String {
    envelope.body(OBJECT, [choice], None, tandem)
}

pub(crate) fn first_chunk(envelope: &Envelope, index: u32, tandem: Tandem) -> String {
    chunk(envelope, TextChoice { index, ..TextChoice::default() }, Some(tandem))
}

/// What a step adds, and the reason when it is the last.
pub(crate) fn chunks(envelope: &Envelope, step: Step, tandem: Option<Tandem>) -> Vec<String> {
    let index = step.choice;
    let finish_reason = step.delta.finish.map(finish_name);
    let logprobs = step.token.filter(|_| envelope.logprobs).map(|token| {
        let mut logprobs = CompletionLogprobs::default();
        logprobs.push(&token, step.offset);
        logprobs
    });
    let text = step.delta.text;
    if text.is_empty() && logprobs.is_none() && tandem.is_none() && finish_reason.is_none() {
        return Vec::new();
    }
    vec![chunk(envelope, TextChoice { index, text, logprobs, finish_reason }, tandem)]
}

/// The answer as one body.
pub(crate) struct Whole {
    choices: Vec<TextChoice>,
}

impl Whole {
    pub(crate) fn new(envelope: &Envelope) -> Self {
        let choice = |index| TextChoice {
            index,
            logprobs: envelope.logprobs.then(CompletionLogprobs::default),
            ..TextChoice::default()
        };
        Self { choices: (0..envelope.choices).map(choice).collect() }
    }

    pub(crate) fn add(&mut self, step: Step) {
        let choice = &mut self.choices[step.choice as usize];
        if let (Some(logprobs), Some(token)) = (&mut choice.logprobs, &step.token) {
            logprobs.push(token, step.offset);
        }
        choice.text += &step.delta.text;
        choice.finish_reason = step.delta.finish.map(finish_name).or(choice.finish_reason);
    }

    pub(crate) fn body(self, envelope: &Envelope, usage: UsageBody, tandem: Option<Tandem>) -> String {
        envelope.body(OBJECT, self.choices, Some(usage), tandem)
    }
}
