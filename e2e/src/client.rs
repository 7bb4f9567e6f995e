//! A client of the OpenAI interface that keeps what a stream said about itself: ids, log probabilities, seams.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// Bound on the wait between two chunks.
const CHUNK: Duration = Duration::from_secs(60);

/// One token as the client saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id in the model's vocabulary.
    pub id: u32,
    /// Natural logarithm of its probability, the bits as sent.
    pub logprob: f64,
}

/// Where another worker took the stream over.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Seam {
    /// Index of the first token after it.
    pub index: u32,
    /// Whether the stream continues bit for bit.
    pub exact: bool,
    /// From the evidence of the failure to the next committed token.
    pub recovery_ms: f64,
}

/// An error that the server put into words.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// HTTP status.
    pub status: u16,
    /// Seconds after which to come back, where the server says so.
    pub retry_after: Option<u64>,
    /// The `error` object.
    pub error: Value,
}

/// What came of a request.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Every token in the order of its arrival.
    pub tokens: Vec<Token>,
    /// Every takeover.
    pub seams: Vec<Seam>,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// The longest wait between two tokens.
    pub longest_gap: Duration,
    /// Extra fields of the first chunk.
    pub about: Value,
}

/// Talks to one gateway.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Client {
    /// For the gateway at `http://HOST:PORT`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(base: &str) -> Result<Self> {
        tandem_pki::install_tls_provider();
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy().build()?;
        Ok(Self { http, base: base.to_owned(), key: None })
    }

    /// The same with an API key.
    #[must_use]
    pub fn with_key(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// A streamed chat completion; `seen` is called after every token with what has come so far, and ends the request
    /// early by returning an error.
    ///
    /// # Errors
    /// When the server refuses, breaks off, or says nothing for a minute.
    pub async fn chat(
        &self,
        body: &Value,
        mut seen: impl FnMut(&Completion) -> Result<()>,
    ) -> Result<Completion> {
        let mut body = body.clone();
        let fields = body.as_object_mut().context("a request is an object")?;
        fields.insert("stream".into(), json!(true));
        fields.insert("logprobs".into(), json!(true));
        let response = self.request(Method::POST, "/v1/chat/completions").json(&body).send().await?;
        let status = response.status().as_u16();
        if status != 200 {
            let text = response.text().await?;
            bail!("HTTP {status}: {text}");
        }
        let mut bytes = response.bytes_stream();
        let mut buffer = Vec::new();
        let mut completion = Completion::default();
        let mut last = Instant::now();
        loop {
            let chunk = tokio::time::timeout(CHUNK, bytes.next()).await.context("no chunk for a minute")?;
            let Some(chunk) = chunk else { bail!("the stream ended without [DONE]") };
            buffer.extend_from_slice(&chunk.context("the stream broke off")?);
            while let Some(end) = buffer.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = buffer.drain(..end + 2).collect();
                let Some(data) = event.trim_ascii().strip_prefix(b"data: ") else { continue };
                if data == b"[DONE]" {
                    return Ok(completion);
                }
                let before = completion.tokens.len();
                take(&serde_json::from_slice(data).context("a chunk is not JSON")?, &mut completion)?;
                if completion.tokens.len() > before {
                    if before > 0 {
                        completion.longest_gap = completion.longest_gap.max(last.elapsed());
                    }
                    last = Instant::now();
                    seen(&completion)?;
                }
            }
        }
    }

    /// A request that the server is to refuse.
    ///
    /// # Errors
    /// When nobody answers with JSON, or the answer is no error.
    pub async fn refusal(&self, path: &str, body: &Value) -> Result<Failure> {
        let response = self.request(Method::POST, path).timeout(CHUNK).json(body).send().await?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let mut answer: Value = response.json().await.context("the answer is not JSON")?;
        let error = answer.get_mut("error").map(Value::take).context("the answer is no error")?;
        Ok(Failure { status, retry_after, error })
    }

    /// Whether the server lists a model now; not when it does not listen or does not let us in.
    ///
    /// # Errors
    /// When its answer is no list of models.
    pub async fn lists(&self, model: &str) -> Result<bool> {
        let Ok(response) = self.request(Method::GET, "/v1/models").timeout(CHUNK).send().await else {
            return Ok(false);
        };
        if response.status() == StatusCode::UNAUTHORIZED {
            return Ok(false);
        }
        let answer: Value = response.json().await.context("the answer is not JSON")?;
        let models = answer["data"].as_array().context("the answer lists nothing")?;
        Ok(models.iter().any(|listed| listed["id"] == model))
    }

    /// The gateway's address.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }
}

fn take(chunk: &Value, completion: &mut Completion) -> Result<()> {
    if let Some(error) = chunk.get("error") {
        bail!("the stream ended with an error: {error}");
    }
    if let Some(extra) = chunk.get("tandem") {
        if completion.about.is_null() {
            completion.about = extra.clone();
        }
        if let Some(seam) = extra.get("seam") {
            completion.seams.push(serde_json::from_value(seam.clone()).context("a seam has another shape")?);
        }
    }
    for choice in chunk["choices"].as_array().into_iter().flatten() {
        if let Some(text) = choice["delta"]["content"].as_str() {
            completion.text.push_str(text);
        }
        for entry in choice["logprobs"]["content"].as_array().into_iter().flatten() {
            completion.tokens.push(Token {
                id: entry["token_id"].as_u64().context("a token has no id")?.try_into()?,
                logprob: entry["logprob"].as_f64().context("a token has no logprob")?,
            });
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            completion.finish_reason = Some(reason.to_owned());
        }
    }
    Ok(())
}
