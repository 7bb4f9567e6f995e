//! Requests, parsed: past here nothing holds a value that can't be.

mod messages;
mod sampling;

use serde_json::{Map, Value};
use tandem_gateway_core::fold::Format;
use tandem_worker_api::{AttemptId, ChatPrompt, GenerateRequest, TokenIds, generate_request::Prompt};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::json;

/// OpenAI's default for plain completions.
const COMPLETION_TOKENS: u32 = 16;
const MAX_CHOICES: u32 = 8;
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 1024;
const MAX_TOOLS: usize = 128;

/// How the client wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Completion,
}

/// A request that can be tried.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) dialect: Dialect,
    pub(crate) model: String,
    pub(crate) choices: u32,
    pub(crate) format: Format,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) logprobs: bool,
    seed: Option<u64>,
    generate: GenerateRequest,
}

impl Parsed {
    /// What the backend is asked for one choice. `seed` is used where the client gave none; `asked_at` is in seconds
    /// since 1970.
    pub(crate) fn generate(&self, stream: &str, choice: u32, seed: u64, asked_at: u64) -> GenerateRequest {
        GenerateRequest {
            id: Some(AttemptId { stream: stream.to_owned(), choice, attempt: 0 }),
            seed: self.seed.unwrap_or(seed),
            asked_at,
            ..self.generate.clone()
        }
    }
}

/// The body of `/v1/chat/completions`.
pub(crate) fn chat(body: &[u8]) -> Result<Parsed, ApiError> {
    let mut fields = Fields::new(json::object(body)?);
    let model = model(&mut fields)?;
    fields.refuse("functions", "give them as `tools`")?;
    fields.refuse("function_call", "use `tool_choice`")?;
    fields.refuse("audio", "this model reads and writes text only")?;
    response_format(&mut fields)?;
    let tools = tools(&mut fields)?;
    let prompt = ChatPrompt {
        messages_json: messages::parse(&mut fields)?,
        template_kwargs_json: template_kwargs(&mut fields)?,
        tools_json: if tools.is_empty() { String::new() } else { Value::Array(tools).to_string() },
    };
    let max_tokens = fields.count("max_tokens", 1..=u32::MAX)?;
    let max_tokens = fields.count("max_completion_tokens", 1..=u32::MAX)?.or(max_tokens).unwrap_or(0);
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.count("top_logprobs", 0..=20)?;
    if top_logprobs.is_some() && !logprobs {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let tools = !prompt.tools_json.is_empty();
    let generate = GenerateRequest {
        prompt: Some(Prompt::Chat(prompt)),
        max_tokens,
        top_logprobs: top_logprobs.unwrap_or(0),
        ..GenerateRequest::default()
    };
    let mut parsed = rest(fields, Dialect::Chat, model, generate, logprobs)?;
    parsed.format = Format { thoughts: true, tools, ..parsed.format };
    Ok(parsed)
}

/// The body of `/v1/completions`.
pub(crate) fn completion(body: &[u8]) -> Result<Parsed, ApiError> {
    let mut fields = Fields::new(json::object(body)?);
    let model = model(&mut fields)?;
    if fields.boolean("echo")?.unwrap_or(false) {
        return Err(ApiError::field(
            "echo",
            "`echo` is not supported yet: put the prompt before the answer yourself",
        ));
    }
    fields.refuse("suffix", "only text after the prompt can be completed")?;
    let prompt = prompt(&mut fields)?;
    let logprobs = fields.count("logprobs", 0..=5)?;
    let generate = GenerateRequest {
        prompt: Some(prompt),
        max_tokens: fields.count("max_tokens", 1..=u32::MAX)?.unwrap_or(COMPLETION_TOKENS),
        top_logprobs: logprobs.unwrap_or(0),
        ..GenerateRequest::default()
    };
    let best_of = fields.count("best_of", 1..=MAX_CHOICES)?;
    let parsed = rest(fields, Dialect::Completion, model, generate, logprobs.is_some())?;
    if best_of.is_some_and(|best_of| best_of != parsed.choices) {
        return Err(ApiError::field("best_of", "`best_of` is not supported yet: use `n`"));
    }
    Ok(parsed)
}

/// What both have.
fn rest(
    mut fields: Fields,
    dialect: Dialect,
    model: String,
    generate: GenerateRequest,
    logprobs: bool,
) -> Result<Parsed, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = match fields.inner("stream_options", "stream_options.")? {
        Some(_) if !stream => {
            return Err(ApiError::field("stream_options", "`stream_options` needs `stream` to be true"));
        }
        Some(mut options) => options.boolean("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok(Parsed {
        dialect,
        choices: fields.count("n", 1..=MAX_CHOICES)?.unwrap_or(1),
        format: Format { stop: stop(&mut fields)?, ..Format::default() },
        stream,
        include_usage,
        logprobs,
        seed: sampling::seed(&mut fields)?,
        generate: GenerateRequest {
            sampling: Some(sampling::parse(&mut fields)?),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            model: model.clone(),
            ..generate
        },
        model,
    })
}

fn model(fields: &mut Fields) -> Result<String, ApiError> {
    fields
        .string("model")?
        .filter(|model| !model.is_empty())
        .ok_or_else(|| ApiError::field("model", "`model` is missing: name the model; /v1/models lists them"))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wrong = || {
        ApiError::field(
            "stop",
            format!("`stop` must be a string, or up to {MAX_STOPS}, each of 1 to {MAX_STOP_BYTES} bytes"),
        )
    };
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => stops
            .into_iter()
            .map(|stop| match stop {
                Value::String(stop) => Ok(stop),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong()),
    };
    if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return Err(wrong());
    }
    Ok(stops)
}

fn prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    const WRONG: &str = "`prompt` must be one string, or one array of token ids";
    let wrong = || ApiError::field("prompt", WRONG);
    match fields.take("prompt") {
        None => Err(ApiError::field("prompt", "`prompt` is missing")),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(mut items)) => match items.as_mut_slice() {
            [] => Err(wrong()),
            [Value::String(text)] => Ok(Prompt::Text(std::mem::take(text))),
            [Value::Array(ids)] => token_ids(ids).ok_or_else(wrong),
            [Value::String(_) | Value::Array(_), ..] => Err(ApiError::field(
                "prompt",
                "several prompts in one request are not supported yet: send one each",
            )),
            ids => token_ids(ids).ok_or_else(wrong),
        },
        Some(_) => Err(wrong()),
    }
}

fn token_ids(ids: &[Value]) -> Option<Prompt> {
    let ids =
        ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect::<Option<Vec<_>>>()?;
    (!ids.is_empty()).then_some(Prompt::Ids(TokenIds { ids }))
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(mut format) = fields.inner("response_format", "response_format.")? else { return Ok(()) };
    match format.string("type")?.as_deref() {
        Some("text") => Ok(()),
        Some(kind @ ("json_object" | "json_schema")) => Err(ApiError::field(
            "response_format",
            format!("`response_format` of type `{kind}` is not supported yet: use `text`"),
        )),
        _ => Err(ApiError::field("response_format.type", "`response_format.type` must be `text`")),
    }
}

/// The tools that the template gets to see.
fn tools(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    fields.boolean("parallel_tool_calls")?;
    let tools = fields.array("tools")?.unwrap_or_default();
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::field("tools", format!("`tools` may hold at most {MAX_TOOLS}")));
    }
    for (index, tool) in tools.iter().enumerate() {
        let named = tool["function"]["name"].as_str().is_some_and(|name| !name.is_empty());
        if tool["type"] != "function" || !named {
            return Err(ApiError::field(
                format!("tools[{index}]"),
                format!("`tools[{index}]` must have `type` \"function\" and a `function` with a `name`"),
            ));
        }
    }
    match fields.take("tool_choice") {
        None => Ok(tools),
        Some(Value::String(choice)) if choice == "auto" => Ok(tools),
        Some(Value::String(choice)) if choice == "none" => Ok(Vec::new()),
        Some(_) => Err(ApiError::field(
            "tool_choice",
            "`tool_choice` may be \"auto\" or \"none\"; forcing a call is not supported yet",
        )),
    }
}

/// `thinking` is Kimi's key, `enable_thinking` others': a template finds both.
fn template_kwargs(fields: &mut Fields) -> Result<String, ApiError> {
    const KEYS: [&str; 2] = ["thinking", "enable_thinking"];
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    for key in KEYS {
        match fields.take(key) {
            None => {}
            Some(Value::Bool(on)) => {
                kwargs.insert(key.to_owned(), on.into());
            }
            Some(Value::Object(thinking)) => {
                let on = match thinking.get("type").and_then(Value::as_str) {
                    Some("enabled") => true,
                    Some("disabled") => false,
                    _ => {
                        let message = format!("`{key}.type` must be \"enabled\" or \"disabled\"");
                        return Err(ApiError::field(format!("{key}.type"), message));
                    }
                };
                kwargs.insert(key.to_owned(), on.into());
            }
            Some(other) => return Err(fields.wrong(key, "a boolean", &other)),
        }
    }
    agree(&mut kwargs, KEYS);
    Ok(if kwargs.is_empty() { String::new() } else { Value::Object(kwargs).to_string() })
}

fn agree(kwargs: &mut Map<String, Value>, [one, other]: [&str; 2]) {
    match (kwargs.get(one).cloned(), kwargs.get(other).cloned()) {
        (Some(value), None) => kwargs.insert(other.to_owned(), value),
        (None, Some(value)) => kwargs.insert(one.to_owned(), value),
        _ => None,
    };
}

#[cfg(test)]
mod tests;
