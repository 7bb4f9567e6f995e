//! The HTTP surface over real sockets, with a backend that does what a test says.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tandem_openai::{
    Backend, Bounds, Event, EventStream, FinishReason, Limits, Model, Prompt, Refusal, Seam, Token, router,
    serve,
};
use tandem_worker_api::GenerateRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

type Open = Box<dyn Fn(GenerateRequest) -> EventStream + Send + Sync>;

struct Scripted {
    open: Open,
    ready: Result<(), Refusal>,
}

impl Backend for Scripted {
    fn models(&self) -> Vec<Model> {
        ["tiny", "llm/tiny"]
            .map(|id| Model {
                id: id.to_owned(),
                answers_to: id.to_owned(),
                created: 5,
                owned_by: "llm".to_owned(),
                context_tokens: 512,
            })
            .into()
    }

    fn ready(&self) -> Result<(), Refusal> {
        self.ready.clone()
    }

    fn open(&self, request: GenerateRequest) -> EventStream {
        (self.open)(request)
    }
}

struct Site {
    url: String,
    address: std::net::SocketAddr,
    client: reqwest::Client,
    end: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Site {
    async fn start(open: impl Fn(GenerateRequest) -> EventStream + Send + Sync + 'static) -> Self {
        Self::with(open, Bounds::default(), Limits::default()).await
    }

    async fn with(
        open: impl Fn(GenerateRequest) -> EventStream + Send + Sync + 'static,
        bounds: Bounds,
        limits: Limits,
    ) -> Self {
        // The error is another test that was here first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Arc::new(Scripted { open: Box::new(open), ready: Ok(()) });
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(
            listener,
            router(backend, Arc::new(tandem_openai::Open), bounds),
            limits,
            async {
                ended.await.unwrap_or_default();
            },
        ));
        Self { url: format!("http://{address}"), address, client: reqwest::Client::new(), end, server }
    }

    async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        let request =
            self.client.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        request.body(body.to_string()).send().await.unwrap()
    }

    async fn chat(&self, more: Value) -> reqwest::Response {
        self.post("/v1/chat/completions", chat(more)).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), json_of(response).await)
    }
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn json_of(response: reqwest::Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// The `data:` lines of a whole answer, each followed by an empty line, and nothing else.
async fn sse(response: reqwest::Response) -> Vec<String> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let body = text.strip_suffix("\n\n").unwrap();
    body.split("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

fn parsed(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn token(id: u32, bytes: &[u8]) -> Result<Event, Refusal> {
    Ok(Event::Token(Token { id, bytes: bytes.to_vec(), logprob: -0.5, top: Vec::new(), ends_turn: false }))
}

fn started() -> Result<Event, Refusal> {
    Ok(Event::Started(Prompt { tokens: 3, cached_tokens: 1, opens_thinking: false }))
}

fn seam() -> Result<Event, Refusal> {
    Ok(Event::Seam(Seam { index: 1, exact: true, recovery: Duration::from_millis(42) }))
}

/// "Hé!", with a takeover in the middle of a character.
fn hello() -> EventStream {
    stream::iter([
        started(),
        token(1, b"H\xc3"),
        seam(),
        token(2, b"\xa9!"),
        Ok(Event::Finished(FinishReason::Stop)),
    ])
    .boxed()
}

fn failing(refusal: Refusal) -> EventStream {
    stream::iter([Err(refusal)]).boxed()
}

/// Tells when it is dropped.
struct Guard(mpsc::UnboundedSender<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.send(()).is_err() {
            // The test is over.
        }
    }
}

/// Speaks for ever, and tells how much and when it was dropped.
fn endless(
    bytes: usize,
) -> (impl Fn(GenerateRequest) -> EventStream + Send + Sync, Arc<AtomicUsize>, mpsc::UnboundedReceiver<()>) {
    let (dropped, ended) = mpsc::unbounded_channel();
    let spoken = Arc::new(AtomicUsize::new(0));
    let counted = spoken.clone();
    let open = move |_| {
        let (guard, spoken) = (Guard(dropped.clone()), counted.clone());
        stream::iter([started()])
            .chain(stream::repeat_with(move || {
                let _alive = &guard;
                spoken.fetch_add(1, Ordering::Relaxed);
                token(7, &vec![b'x'; bytes])
            }))
            .boxed()
    };
    (open, spoken, ended)
}

/// Starts, and then says nothing.
fn silent() -> (impl Fn(GenerateRequest) -> EventStream + Send + Sync, mpsc::UnboundedReceiver<()>) {
    let (dropped, ended) = mpsc::unbounded_channel();
    let open = move |_| {
        let guard = Guard(dropped.clone());
        let silence = stream::once(async move {
            let _alive = guard;
            std::future::pending().await
        });
        stream::iter([started()]).chain(silence).boxed()
    };
    (open, ended)
}

async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), event).await.expect("it should have happened long ago")
}

#[tokio::test]
async fn a_streamed_chat_has_openais_chunks() {
    let site = Site::start(|_| hello()).await;
    let response = site.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    let request_id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let events = sse(response).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks = parsed(chunks);
    for chunk in &chunks {
        assert_eq!((&chunk["object"], &chunk["model"]), (&json!("chat.completion.chunk"), &json!("tiny")));
        assert_eq!(chunk["id"], request_id);
    }
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[0]["tandem"]["choice"], 0);
    assert_eq!(format!("chatcmpl-{}", chunks[0]["tandem"]["stream"].as_str().unwrap()), request_id);
    assert_eq!(
        chunks[1]["choices"][0],
        json!({"index": 0, "delta": {"content": "H"}, "finish_reason": null})
    );
    assert_eq!(chunks[2]["choices"][0]["delta"], json!({"content": "é!"}));
    assert_eq!(chunks[2]["tandem"], json!({"seam": {"index": 1, "exact": true, "recovery_ms": 42}}));
    assert_eq!(chunks[3]["choices"][0], json!({"index": 0, "delta": {}, "finish_reason": "stop"}));
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"]["total_tokens"], 5);
    assert_eq!(chunks[4]["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    assert_eq!(chunks.len(), 5);
}

#[tokio::test]
async fn a_whole_chat_has_openais_body() {
    let site = Site::start(|_| hello()).await;
    let body = json_of(site.chat(json!({"logprobs": true})).await).await;
    assert_eq!(body["object"], "chat.completion");
    let choice = &body["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "Hé!", "refusal": null}));
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(
        choice["logprobs"]["content"][0],
        json!({"token": "H\u{fffd}", "token_id": 1, "logprob": -0.5, "bytes": [72, 195], "top_logprobs": []})
    );
    assert_eq!(choice["logprobs"]["content"][1]["token_id"], 2);
    assert_eq!(body["usage"]["completion_tokens"], 2);
    assert_eq!(body["tandem"]["seams"], json!([{"choice": 0, "index": 1, "exact": true, "recovery_ms": 42}]));
}

#[tokio::test]
async fn thoughts_and_tool_calls_have_fields_of_their_own() {
    let site = Site::start(|_| {
        let text = b"</think>ok<|tool_calls_section_begin|><|tool_call_begin|>functions.f:4\
            <|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|><|tool_calls_section_end|>";
        stream::iter([
            Ok(Event::Started(Prompt { tokens: 3, cached_tokens: 0, opens_thinking: true })),
            token(1, b"hm"),
            token(2, &text[..60]),
            token(3, &text[60..]),
            Ok(Event::Finished(FinishReason::Stop)),
        ])
        .boxed()
    })
    .await;
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let body = json_of(site.chat(json!({"tools": tools})).await).await;
    let call = json!({"id": "functions.f:4", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    assert_eq!(
        body["choices"][0]["message"],
        json!({"role": "assistant", "content": "ok", "reasoning_content": "hm", "tool_calls": [call], "refusal": null})
    );
    assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 2);

    let events = sse(site.chat(json!({"tools": tools, "stream": true})).await).await;
    let chunks = parsed(&events[..events.len() - 1]);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(deltas[1], &json!({"reasoning_content": "hm"}));
    let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta.get("tool_calls")).collect();
    assert_eq!(calls[0][0]["id"], "functions.f:4");
    assert_eq!(calls[0][0]["index"], 0);
    let arguments: String =
        calls.iter().map(|call| call[0]["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(arguments, "{\"a\": 1}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn plain_completions_have_theirs() {
    let site = Site::start(|_| hello()).await;
    let request = json!({"model": "llm/tiny", "prompt": "p", "logprobs": 0});
    let body = json_of(site.post("/v1/completions", request).await).await;
    assert_eq!((&body["object"], &body["choices"][0]["text"]), (&json!("text_completion"), &json!("Hé!")));
    assert_eq!(body["choices"][0]["logprobs"]["token_ids"], json!([1, 2]));
    assert_eq!(body["choices"][0]["logprobs"]["text_offset"], json!([0, 2]));
    let request = json!({"model": "tiny", "prompt": [5, 6], "stream": true});
    let events = sse(site.post("/v1/completions", request).await).await;
    let (done, chunks) = events.split_last().unwrap();
    let text: String =
        parsed(chunks).iter().map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!((done.as_str(), text.as_str()), ("[DONE]", "Hé!"));
    assert_eq!(parsed(chunks).last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn the_backend_is_asked_per_choice_with_one_stream_and_one_seed() {
    let (asked, mut seen) = mpsc::unbounded_channel();
    let site = Site::start(move |request| {
        asked.send(request).unwrap();
        hello()
    })
    .await;
    let body = json_of(site.chat(json!({"n": 3, "max_tokens": 9})).await).await;
    assert_eq!(body["choices"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&body["usage"]["prompt_tokens"], &body["usage"]["completion_tokens"]),
        (&json!(3), &json!(6))
    );
    let requests = [seen.recv().await.unwrap(), seen.recv().await.unwrap(), seen.recv().await.unwrap()];
    for (choice, request) in requests.iter().enumerate() {
        let id = request.id.as_ref().unwrap();
        assert_eq!((id.choice as usize, id.attempt, id.stream.len()), (choice, 0, 32));
        assert_eq!(id.stream, body["tandem"]["stream"].as_str().unwrap());
        assert_eq!((request.seed, request.max_tokens, request.model.as_str()), (requests[0].seed, 9, "tiny"));
        assert_eq!(request.asked_at, body["created"].as_u64().unwrap());
    }
}

#[tokio::test]
async fn every_refusal_has_its_status_and_shape() {
    let second = Duration::from_secs(1);
    let cases = [
        (
            Refusal::Invalid { message: "no".into(), param: Some("seed".into()) },
            400,
            "invalid_request_error",
            json!(null),
        ),
        (
            Refusal::ContextLengthExceeded("600 > 512".into()),
            400,
            "invalid_request_error",
            json!("context_length_exceeded"),
        ),
        (Refusal::ModelNotFound("gone".into()), 404, "invalid_request_error", json!("model_not_found")),
        (Refusal::Overloaded { retry_after: second }, 429, "rate_limit_error", json!("overloaded")),
        (
            Refusal::Unavailable { message: "none".into(), retry_after: second * 7 },
            503,
            "server_error",
            json!("unavailable"),
        ),
        (Refusal::Poisonous, 500, "server_error", json!("workers_died")),
        (Refusal::DeadlineExceeded(second), 504, "server_error", json!("deadline_exceeded")),
        (Refusal::Internal("oops".into()), 500, "server_error", json!(null)),
    ];
    for (refusal, status, kind, code) in cases {
        let expected = refusal.clone();
        let site = Site::start(move |_| failing(refusal.clone())).await;
        for stream in [false, true] {
            let response = site.chat(json!({"stream": stream})).await;
            assert_eq!(response.status(), status, "{expected:?}");
            let headers = response.headers().clone();
            let retry = match expected {
                Refusal::Overloaded { .. } => Some("1"),
                Refusal::Unavailable { .. } => Some("7"),
                _ => None,
            };
            assert_eq!(headers.get("retry-after").map(|value| value.to_str().unwrap()), retry);
            let hopeless = matches!(expected, Refusal::Poisonous | Refusal::DeadlineExceeded(_));
            assert_eq!(headers.contains_key("x-should-retry"), hopeless);
            let error = json_of(response).await["error"].take();
            assert_eq!((&error["type"], &error["code"]), (&json!(kind), &code));
            assert_eq!(error["message"], expected.to_string());
            assert!(error.get("param").is_some());
        }
    }
}

#[tokio::test]
async fn a_failure_in_mid_stream_ends_it_with_an_error_and_without_done() {
    let refusal = Refusal::Unavailable { message: "all gone".into(), retry_after: Duration::from_secs(1) };
    let site = Site::start(move |_| {
        stream::iter([started(), token(1, b"a"), Err(refusal.clone()), token(2, b"b")]).boxed()
    })
    .await;
    let chunks = parsed(&sse(site.chat(json!({"stream": true})).await).await);
    assert_eq!(chunks.len(), 3);
    assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "a");
    assert_eq!(chunks[2]["error"]["message"], "all gone");
    let whole = site.chat(json!({})).await;
    assert_eq!(whole.status(), 503, "without a stream there is still a status to give");
}

#[tokio::test]
async fn models_health_and_what_is_not_there() {
    let site = Site::start(|_| hello()).await;
    let (status, list) = site.get("/v1/models").await;
    assert_eq!((status, list["data"].as_array().unwrap().len()), (200, 2));
    let (status, one) = site.get("/v1/models/llm/tiny").await;
    assert_eq!((status, &one["id"], &one["context_length"]), (200, &json!("llm/tiny"), &json!(512)));
    let (status, error) = site.get("/v1/models/huge").await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(site.get("/health").await.0, 200);
    assert_eq!(site.get("/ready").await.0, 200);
    assert_eq!(site.get("/v1/nothing").await.0, 404);
    let (status, error) = site.get("/v1/chat/completions").await;
    assert_eq!((status, &error["error"]["type"]), (405, &json!("invalid_request_error")));
    let response = site.chat(json!({"model": "huge"})).await;
    assert_eq!(response.status(), 404);
    let error = json_of(response).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("tiny, llm/tiny"), "{error}");
}

#[tokio::test]
async fn hostile_bodies_get_clean_answers() {
    let site =
        Site::with(|_| hello(), Bounds { body: 100_000, ..Bounds::default() }, Limits::default()).await;
    let post = |body: String| {
        let request = site.client.post(format!("{}/v1/chat/completions", site.url)).body(body);
        async move {
            let response = request.send().await.unwrap();
            (
                response.status().as_u16(),
                json_of(response).await["error"]["message"].as_str().unwrap().to_owned(),
            )
        }
    };
    let (status, message) = post(format!("{{\"model\": \"{}\"}}", "x".repeat(200_000))).await;
    assert_eq!((status, message.as_str()), (413, "the body is larger than 100000 bytes"));
    for body in [
        format!("{{\"messages\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000)),
        r#"{"model": "tiny", "model": "tiny"}"#.to_owned(),
        r#"{"model": "tiny", "temperature": NaN}"#.to_owned(),
        r#"{"model": "tiny", "max_tokens": -99999999999999999999999}"#.to_owned(),
        "not json".to_owned(),
        String::new(),
    ] {
        assert_eq!(post(body.clone()).await.0, 400, "{}", &body[..body.len().min(60)]);
    }
}

#[tokio::test]
async fn slow_headers_and_slow_bodies_are_cut_off() {
    let limits = Limits { headers_within: Duration::from_millis(200), ..Limits::default() };
    let bounds = Bounds { body_within: Duration::from_millis(200), ..Bounds::default() };
    let site = Site::with(|_| hello(), bounds, limits).await;

    let mut slow = TcpStream::connect(site.address).await.unwrap();
    slow.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow").await.unwrap();
    let mut answer = Vec::new();
    soon(slow.read_to_end(&mut answer)).await.unwrap();

    let mut slow = TcpStream::connect(site.address).await.unwrap();
    slow.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        .await
        .unwrap();
    let mut answer = Vec::new();
    soon(slow.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

async fn raw_chat(site: &Site, more: Value) -> TcpStream {
    let body = chat(more).to_string();
    let mut socket = TcpStream::connect(site.address).await.unwrap();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn a_client_that_goes_away_cancels() {
    for streamed in [true, false] {
        let (open, mut ended) = silent();
        let site = Site::start(move |request| open(request)).await;
        let mut socket = raw_chat(&site, json!({"stream": streamed})).await;
        if streamed {
            let mut some = [0; 16];
            soon(socket.read_exact(&mut some)).await.unwrap();
        }
        drop(socket);
        soon(ended.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_stop_string_cancels_and_the_answer_goes_on_without_it() {
    let (open, spoken, mut ended) = endless(1);
    let site = Site::start(open).await;
    let body = json_of(site.chat(json!({"stop": "xxx"})).await).await;
    assert_eq!(
        (&body["choices"][0]["message"]["content"], &body["choices"][0]["finish_reason"]),
        (&json!(""), &json!("stop"))
    );
    assert_eq!(body["usage"]["completion_tokens"], 3);
    soon(ended.recv()).await.unwrap();
    assert_eq!(spoken.load(Ordering::Relaxed), 3, "nothing is computed past the stop");
}

#[tokio::test]
async fn one_choice_of_several_may_stop_early() {
    let site = Site::start(|request| match request.id.unwrap().choice {
        0 => stream::iter([
            started(),
            token(1, b"a."),
            token(2, b"b"),
            Ok(Event::Finished(FinishReason::Length)),
        ])
        .boxed(),
        _ => stream::iter([
            started(),
            token(1, b"a"),
            token(2, b"b"),
            Ok(Event::Finished(FinishReason::Length)),
        ])
        .boxed(),
    })
    .await;
    let body = json_of(site.chat(json!({"n": 2, "stop": ["."]})).await).await;
    assert_eq!(body["choices"][0]["message"]["content"], "a");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][1]["message"]["content"], "ab");
    assert_eq!(body["choices"][1]["finish_reason"], "length");
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_back_its_worker_and_is_cut_off() {
    let (open, spoken, mut ended) = endless(1000);
    let limits = Limits { read_within: Duration::from_millis(300), ..Limits::default() };
    let site = Site::with(open, Bounds::default(), limits).await;
    let socket = raw_chat(&site, json!({"stream": true})).await;
    soon(ended.recv()).await.unwrap();
    let spoken = spoken.load(Ordering::Relaxed);
    assert!(spoken < 50_000, "{spoken} tokens of 1,000 bytes were made for nobody");
    drop(socket);
}

#[tokio::test]
async fn the_end_waits_for_streams_and_not_for_ever() {
    let (tokens, feed) = mpsc::channel::<Result<Event, Refusal>>(4);
    let feed = std::sync::Mutex::new(Some(feed));
    let site = Site::start(move |_| {
        tokio_stream::wrappers::ReceiverStream::new(feed.lock().unwrap().take().unwrap()).boxed()
    })
    .await;
    tokens.send(started()).await.unwrap();
    let response = site.chat(json!({"stream": true})).await;
    site.end.send(()).unwrap();
    while TcpStream::connect(site.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    tokens.send(token(1, b"late")).await.unwrap();
    tokens.send(Ok(Event::Finished(FinishReason::Stop))).await.unwrap();
    assert_eq!(sse(response).await.last().unwrap(), "[DONE]");
    soon(site.server).await.unwrap();

    let (open, mut ended) = silent();
    let limits = Limits { grace: Duration::from_millis(100), ..Limits::default() };
    let site = Site::with(open, Bounds::default(), limits).await;
    let response = site.chat(json!({"stream": true})).await;
    site.end.send(()).unwrap();
    soon(site.server).await.unwrap();
    soon(ended.recv()).await.unwrap();
    assert!(response.text().await.is_err(), "a cut stream does not look finished");
}
