//! A client of the chat API that keeps what it read.

use futures::StreamExt;
use serde_json::{Value, json};

use super::soon;
use super::worker::{continued, piece};

pub const MESSAGES: &str = r#"[{"role":"user","content":"hi"}]"#;

/// What came, in order.
#[derive(Debug, Default)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub text: String,
    pub seams: Vec<Value>,
    pub finish: Option<String>,
    pub usage: Option<Value>,
    pub error: Option<Value>,
    pub done: bool,
}

/// A stream under way.
pub struct Reading {
    pub status: u16,
    bytes: futures::stream::BoxStream<'static, reqwest::Result<Vec<u8>>>,
    buffer: Vec<u8>,
    pub answer: Answer,
}

pub fn body(tokens: usize) -> Value {
    json!({
        "model": "tiny", "messages": serde_json::from_str::<Value>(MESSAGES).unwrap(), "max_tokens": tokens,
        "stream": true, "logprobs": true, "stream_options": {"include_usage": true},
    })
}

pub fn ask(url: &str, body: Value) -> impl Future<Output = Reading> + Send + use<> {
    ask_by(&reqwest::Client::new(), url, body)
}

pub fn ask_by(
    client: &reqwest::Client,
    url: &str,
    body: Value,
) -> impl Future<Output = Reading> + Send + use<> {
    let request = client.post(format!("{url}/v1/chat/completions")).body(body.to_string());
    async {
        let response = soon(request.send()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.bytes_stream().map(|piece| piece.map(|bytes| bytes.to_vec())).boxed();
        Reading { status, bytes, buffer: Vec::new(), answer: Answer::default() }
    }
}

impl Reading {
    /// Reads until there are so many tokens.
    pub async fn tokens(&mut self, count: usize) {
        while self.answer.ids.len() < count {
            assert!(self.more().await, "the stream ended early: {:?}", self.answer);
        }
    }

    /// Reads to the end.
    pub async fn end(mut self) -> Answer {
        while self.more().await {}
        self.answer
    }

    async fn more(&mut self) -> bool {
        let Some(bytes) = soon(self.bytes.next()).await else {
            if !self.buffer.is_empty() {
                self.answer.error = Some(serde_json::from_slice(&self.buffer).unwrap());
            }
            return false;
        };
        self.buffer.extend(bytes.unwrap());
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let data = event.strip_prefix(b"data: ").unwrap().trim_ascii();
            match data {
                b"[DONE]" => self.answer.done = true,
                json => self.answer.take(&serde_json::from_slice(json).unwrap()),
            }
        }
        true
    }
}

impl Answer {
    fn take(&mut self, chunk: &Value) {
        assert!(self.error.is_none(), "a chunk after an error");
        if chunk.get("error").is_some() {
            self.error = Some(chunk.clone());
            return;
        }
        self.seams.extend(chunk["tandem"].get("seam").cloned());
        if let Some(usage) = chunk.get("usage") {
            self.usage = Some(usage.clone());
        }
        let Some(choice) = chunk["choices"].get(0) else { return };
        self.text += choice["delta"]["content"].as_str().unwrap_or_default();
        for entry in choice["logprobs"]["content"].as_array().into_iter().flatten() {
            self.ids.push(entry["token_id"].as_u64().unwrap().try_into().unwrap());
            self.logprobs.push(entry["logprob"].as_f64().unwrap() as f32);
        }
        self.finish = choice["finish_reason"].as_str().map(str::to_owned).or(self.finish.take());
    }

    /// Holds the answer to what an undisturbed worker says.
    pub fn assert_undisturbed(&self, tokens: usize) {
        self.assert_tokens(&continued(MESSAGES, 0, 0, Vec::new(), tokens));
    }

    pub fn assert_tokens(&self, expected: &[u32]) {
        assert_eq!(self.error, None);
        assert_eq!(self.ids, expected, "tokens were lost, doubled, reordered or changed");
        let logprobs: Vec<f32> = expected.iter().map(|id| -(*id as f32) / 1e6).collect();
        assert_eq!(self.logprobs, logprobs);
        let bytes: Vec<u8> = expected.iter().flat_map(|id| piece(*id)).copied().collect();
        assert_eq!(self.text, String::from_utf8_lossy(&bytes));
        assert_eq!(self.finish.as_deref(), Some("length"));
        assert_eq!(self.usage.as_ref().unwrap()["completion_tokens"], expected.len());
        assert_eq!(self.usage.as_ref().unwrap()["prompt_tokens"], 9);
        assert!(self.done);
    }
}
