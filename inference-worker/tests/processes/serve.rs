//! `inference-worker serve` as a person starts it. What the HTTP API says in detail is tested where it is made.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::{Cluster, PATIENCE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

struct Served {
    child: Child,
    url: String,
    /// What was printed before it was ready.
    said: String,
}

impl Served {
    /// Blocks until the one line that says it is ready.
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
            .arg("serve")
            .arg(&cluster.model)
            .args(["--port", "0", "--context", "256", "--threads", "1"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("answers on ") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "it ended: {said}");
        }
        let url = said.split("answers on ").nth(1).unwrap().trim().to_owned();
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, url, said }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

async fn post(url: &str, body: &Value) -> (u16, String) {
    let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let response = client.post(url).json(body).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn it_prints_its_plan_answers_and_ends_on_sigterm() {
    let cluster = Cluster::new();
    let mut served = Served::start(&cluster, &["--name", "tiny"]);
    for words in ["weights", "KV pool", "total", "512 tokens"] {
        assert!(served.said.contains(words), "`{words}` is not in: {}", served.said);
    }
    let chat =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "seed": 3});
    let url = format!("{}/chat/completions", served.url);
    let (status, first) = post(&url, &chat).await;
    assert_eq!(status, 200, "{first}");
    let first: Value = serde_json::from_str(&first).unwrap();
    assert!(first["usage"]["prompt_tokens"].as_u64() > Some(2));
    let (_, again) = post(&url, &chat).await;
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(first["choices"], again["choices"], "a seed gives the same answer again");

    let mut streaming = chat.clone();
    streaming["stream"] = true.into();
    let (status, events) = post(&url, &streaming).await;
    assert_eq!(status, 200);
    let text: String = events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(Some(text.as_str()), first["choices"][0]["message"]["content"].as_str());
    assert!(events.trim_end().ends_with("data: [DONE]"));

    let mut long = chat.clone();
    long["max_tokens"] = 1000.into();
    let (status, error) = post(&url, &long).await;
    assert_eq!(status, 400);
    assert!(error.contains("context_length_exceeded"), "{error}");

    kill(Pid::from_raw(served.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_range_of_layers_is_planned_but_not_served() {
    let cluster = Cluster::new();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
            .arg(arguments[0])
            .arg(&cluster.model)
            .args(&arguments[1..])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (ended_well, plan, _) = run(&["plan", "--layers", "0..1", "--context", "64"]);
    assert!(ended_well && plan.contains("layers 0..1 of 2"), "{plan}");
    let (ended_well, _, error) = run(&["serve", "--layers", "0..1", "--context", "64"]);
    assert!(!ended_well && error.contains("not supported yet"), "{error}");
    let (ended_well, tokens, _) = run(&["tokenize", "hi !", "--ids"]);
    assert!(ended_well);
    assert_eq!(tokens.trim(), "71 72 220 0");
}
