//! Conversations through a gateway that speaks the OpenAI interface, as far as a chat needs it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Json, Router, routing};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use support::Site;

#[derive(Clone)]
struct Script {
    status: StatusCode,
    body: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

/// A gateway that answers everything with this; where it listens, and what it was asked.
async fn gateway(status: StatusCode, body: String) -> (String, Arc<Mutex<Vec<Value>>>) {
    let asked = Arc::<Mutex<Vec<Value>>>::default();
    let script = Script { status, body, asked: Arc::clone(&asked) };
    let routes = Router::new().route("/v1/chat/completions", routing::post(answer)).with_state(script);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (url, asked)
}

async fn answer(State(script): State<Script>, Json(request): Json<Value>) -> impl IntoResponse {
    script.asked.lock().unwrap().push(request);
    (script.status, [("content-type", "text/event-stream")], script.body)
}

fn stream(chunks: &[Value], done: bool) -> String {
    let events: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    if done { events + "data: [DONE]\n\n" } else { events }
}

fn piece(text: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {"content": text}}]})
}

#[tokio::test]
async fn an_answer_goes_to_standard_output_and_its_seam_to_standard_error() {
    let site = Site::start().await;
    let mut seam = piece(" world");
    seam["tandem"] = json!({"seam": {"index": 1, "exact": true, "recovery_ms": 42}});
    let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]});
    let (url, asked) = gateway(StatusCode::OK, stream(&[piece("Hello"), seam, end], true)).await;
    site.fake.gateway("edge", &url);
    let flags = ["--system", "Be brief.", "--temperature", "0.5", "--seed", "7", "--max-tokens", "2"];
    let said = site.tandem(&[&["chat", "tiny", "Say", "hello"][..], &flags].concat()).await;
    assert_eq!((said.code, said.out.as_str()), (0, "Hello world\n"), "{said:?}");
    assert_eq!(
        said.err,
        "[another host goes on exactly where it was][cut: the answer has reached its longest length]\n"
    );
    let asked = asked.lock().unwrap();
    let messages =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello"}]);
    assert_eq!(
        asked[0],
        json!({"model": "tiny", "messages": messages, "stream": true, "temperature": 0.5, "seed": 7, "max_tokens": 2})
    );
}

#[tokio::test]
async fn a_question_may_come_from_standard_input() {
    let site = Site::start().await;
    let (url, asked) = gateway(StatusCode::OK, stream(&[piece("Yes.")], true)).await;
    let chat = ["chat", "tiny", "--gateway", &format!("{url}/")];
    assert_eq!(site.tell(&chat, "Is this\ntwo lines?\n").await.ok(), "Yes.\n");
    assert_eq!(asked.lock().unwrap()[0]["messages"][0]["content"], "Is this\ntwo lines?");
    site.tell(&chat, "\n").await.refused(1, &["there is no question"]);
}

#[tokio::test]
async fn an_answer_that_breaks_keeps_what_came_and_says_why() {
    let site = Site::start().await;
    let error = json!({"error": {"message": "no replica is left: ask again in 5 s", "type": "server_error"}});
    let (url, _) = gateway(StatusCode::OK, stream(&[piece("Hel"), error], false)).await;
    let said = site.tandem(&["chat", "tiny", "--gateway", &url, "hello"]).await;
    assert_eq!(said.out, "Hel\n");
    said.refused(1, &["error: no replica is left: ask again in 5 s"]);
    let (url, _) = gateway(StatusCode::OK, stream(&[piece("Hel")], false)).await;
    site.tandem(&["chat", "tiny", "--gateway", &url, "hello"]).await.refused(1, &["lost in mid-answer"]);
}

#[tokio::test]
async fn refusals_come_in_the_words_of_the_gateway() {
    let site = Site::start().await;
    let body = json!({"error": {"message": "there is no model tini: ask for tiny"}}).to_string();
    let (url, _) = gateway(StatusCode::NOT_FOUND, body).await;
    site.tandem(&["chat", "tini", "--gateway", &url, "hello"]).await.refused(1, &["ask for tiny"]);
    let (url, _) = gateway(StatusCode::BAD_GATEWAY, "<html>".into()).await;
    site.tandem(&["chat", "tiny", "--gateway", &url, "hello"])
        .await
        .refused(1, &["HTTP 502", "Tandem gateway?"]);
}

#[tokio::test]
async fn a_gateway_that_is_gone_is_passed_over() {
    let site = Site::start().await;
    site.tandem(&["chat", "tiny", "hello"]).await.refused(1, &["no gateway is connected", "--gateway"]);
    // Bound and dropped: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    site.fake.gateway("a", &format!("http://{free}"));
    site.tandem(&["chat", "tiny", "hello"]).await.refused(1, &["no gateway answers at http://127.0.0.1"]);
    let (url, _) = gateway(StatusCode::OK, stream(&[piece("Here.")], true)).await;
    site.fake.gateway("b", &url);
    assert_eq!(site.tandem(&["chat", "tiny", "hello"]).await.ok(), "Here.\n");
}
