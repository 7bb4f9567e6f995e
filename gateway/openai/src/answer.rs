//! Answers: as server-sent events while tokens come, or as one body.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use tandem_gateway_core::fold::Usage;
use tandem_gateway_core::{FinishReason, Refusal, Seam};

use crate::choice::Step;
use crate::error::ApiError;
use crate::request::Dialect;
use crate::{chat, completion};

pub(crate) type Steps = BoxStream<'static, Result<Step, Refusal>>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every chunk and body of an answer repeats.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) dialect: Dialect,
    /// Of the stream, unguessable.
    pub(crate) stream: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: u32,
    pub(crate) include_usage: bool,
    pub(crate) logprobs: bool,
}

impl Envelope {
    fn id(&self) -> String {
        let prefix = match self.dialect {
            Dialect::Chat => "chatcmpl",
            Dialect::Completion => "cmpl",
        };
        format!("{prefix}-{}", self.stream)
    }

    /// A chunk or a body as JSON.
    pub(crate) fn body<C: Serialize>(
        &self,
        object: &'static str,
        choices: C,
        usage: Option<UsageBody>,
        tandem: Option<Tandem>,
    ) -> String {
        let body = AnswerBody {
            id: self.id(),
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
            tandem,
        };
        serde_json::to_string(&body).expect("strings, numbers and lists of them are JSON")
    }

    fn respond(&self, body: Body, content_type: &'static str) -> Response {
        let mut response = body.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Ok(id) = HeaderValue::from_str(&self.id()) {
            headers.insert(REQUEST_ID, id);
        }
        response
    }
}

#[derive(Serialize)]
struct AnswerBody<'a, C> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: C,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tandem: Option<Tandem>,
}

/// What we say beyond OpenAI's fields.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tandem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) choice: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seam: Option<SeamBody>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) seams: Vec<SeamBody>,
}

/// From the token at `index` on, another worker spoke.
#[derive(Debug, Serialize)]
pub(crate) struct SeamBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    choice: Option<u32>,
    index: u32,
    exact: bool,
    recovery_ms: u64,
}

impl SeamBody {
    fn new(choice: Option<u32>, seam: Seam) -> Self {
        let recovery_ms = u64::try_from(seam.recovery.as_millis()).unwrap_or(u64::MAX);
        Self { choice, index: seam.index, exact: seam.exact, recovery_ms }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
}

impl UsageBody {
    /// The prompt counts once, however many choices it has.
    pub(crate) fn add(&mut self, usage: Usage) {
        self.prompt_tokens = self.prompt_tokens.max(usage.prompt_tokens);
        self.prompt_tokens_details.cached_tokens =
            self.prompt_tokens_details.cached_tokens.max(usage.cached_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(usage.completion_tokens);
        self.completion_tokens_details.reasoning_tokens += usage.reasoning_tokens;
        self.total_tokens = self.prompt_tokens.saturating_add(self.completion_tokens);
    }
}

pub(crate) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

/// Server-sent events. They are made as the client reads them: one that does not read holds back its workers.
pub(crate) fn streamed(envelope: Envelope, steps: Steps) -> Response {
    let chunks = (0..envelope.choices)
        .map(|choice| {
            let tandem =
                Tandem { stream: Some(envelope.stream.clone()), choice: Some(choice), ..Tandem::default() };
            match envelope.dialect {
                Dialect::Chat => chat::first_chunk(&envelope, choice, tandem),
                Dialect::Completion => completion::first_chunk(&envelope, choice, tandem),
            }
        })
        .collect();
    let head = envelope.respond(Body::empty(), "text/event-stream").into_parts().0;
    let writer = Writer { envelope, steps: Some(steps), chunks, usage: UsageBody::default() };
    let body = stream::unfold(writer, |mut writer| async move {
        let chunk = writer.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(format!("data: {chunk}\n\n"))), writer))
    });
    let mut response = Response::from_parts(head, Body::from_stream(body));
    // Proxies that gather answers before passing them on would undo the stream.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Writer {
    envelope: Envelope,
    /// `None` once everything is said.
    steps: Option<Steps>,
    chunks: VecDeque<String>,
    usage: UsageBody,
}

impl Writer {
    async fn next(&mut self) -> Option<String> {
        while self.chunks.is_empty() {
            match self.steps.as_mut()?.next().await {
                Some(Ok(step)) => self.step(step),
                Some(Err(refusal)) => {
                    self.steps = None;
                    let envelope = ApiError::from(refusal).envelope();
                    self.chunks.extend(serde_json::to_string(&envelope));
                }
                None => {
                    self.steps = None;
                    if self.envelope.include_usage {
                        let usage = self.envelope.body(self.object(), [(); 0], Some(self.usage), None);
                        self.chunks.push_back(usage);
                    }
                    self.chunks.push_back("[DONE]".to_owned());
                }
            }
        }
        self.chunks.pop_front()
    }

    fn object(&self) -> &'static str {
        match self.envelope.dialect {
            Dialect::Chat => chat::CHUNK,
            Dialect::Completion => completion::OBJECT,
        }
    }

    fn step(&mut self, step: Step) {
        if let Some(usage) = step.usage {
            self.usage.add(usage);
        }
        let seam =
            step.seam.map(|seam| Tandem { seam: Some(SeamBody::new(None, seam)), ..Tandem::default() });
        self.chunks.extend(match self.envelope.dialect {
            Dialect::Chat => chat::chunks(&self.envelope, step, seam),
            Dialect::Completion => completion::chunks(&self.envelope, step, seam),
        });
    }
}

/// One body, once everything is said.
pub(crate) async fn whole(envelope: Envelope, mut steps: Steps) -> Result<Response, ApiError> {
    let mut usage = UsageBody::default();
    let mut seams = Vec::new();
    let mut gathered = match envelope.dialect {
        Dialect::Chat => Gathered::Chat(chat::Whole::new(&envelope)),
        Dialect::Completion => Gathered::Completion(completion::Whole::new(&envelope)),
    };
    while let Some(step) = steps.next().await {
        let step = step?;
        if let Some(counted) = step.usage {
            usage.add(counted);
        }
        seams.extend(step.seam.map(|seam| SeamBody::new(Some(step.choice), seam)));
        match &mut gathered {
            Gathered::Chat(whole) => whole.add(step),
            Gathered::Completion(whole) => whole.add(step),
        }
    }
    let tandem = Some(Tandem { stream: Some(envelope.stream.clone()), seams, ..Tandem::default() });
    let body = match gathered {
        Gathered::Chat(whole) => whole.body(&envelope, usage, tandem),
        Gathered::Completion(whole) => whole.body(&envelope, usage, tandem),
    };
    Ok(envelope.respond(Body::from(body), "application/json"))
}

enum Gathered {
    Chat(chat::Whole),
    Completion(completion::Whole),
}
