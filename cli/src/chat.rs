//! `tandem chat`: a conversation through a gateway, as any client of the OpenAI interface would have it.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use eventsource_stream::Eventsource;
use futures::StreamExt;
use serde_json::{Value, json};
use tandem_control_api::StatusRequest;

use crate::connection::Connection;

/// Bound on the wait for the next piece of an answer.
const SILENCE: Duration = Duration::from_secs(120);

/// With whom and how.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem chat tiny-kimi \"What is Tandem?\"\n  tandem chat tiny-kimi\n  \
                        tandem chat kimi-k2.5 --gateway http://127.0.0.1:8080 --temperature 0.6")]
pub(crate) struct Options {
    /// The model's name, or NAMESPACE/NAME.
    model: String,
    /// The question. Without it the conversation is interactive.
    prompt: Vec<String>,
    /// Base address of a gateway; without it the operator is asked for one.
    #[arg(long, env = "TANDEM_GATEWAY")]
    gateway: Option<String>,
    /// What the model is told first.
    #[arg(long)]
    system: Option<String>,
    /// 0 always takes the likeliest token.
    #[arg(long)]
    temperature: Option<f32>,
    /// Makes a sampled answer repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// The longest answer, in tokens.
    #[arg(long)]
    max_tokens: Option<u32>,
}

pub(crate) async fn run(connect: &impl Fn() -> Result<Connection>, options: &Options) -> Result<()> {
    let gateway = match &options.gateway {
        Some(gateway) => gateway.trim_end_matches('/').to_owned(),
        None => find_gateway(connect()?).await?,
    };
    let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?;
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = &options.system {
        messages.push(json!({"role": "system", "content": system}));
    }
    if !options.prompt.is_empty() {
        messages.push(json!({"role": "user", "content": options.prompt.join(" ")}));
        answer(&http, &gateway, options, &messages).await?;
        return Ok(());
    }
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("{} at {gateway}. An empty line or Ctrl-D ends it.", options.model);
    }
    loop {
        if interactive {
            eprint!("> ");
            std::io::stderr().flush().context("standard error is closed")?;
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).context("standard input is no text")? == 0
            || line.trim().is_empty()
        {
            return Ok(());
        }
        messages.push(json!({"role": "user", "content": line.trim()}));
        let text = answer(&http, &gateway, options, &messages).await?;
        messages.push(json!({"role": "assistant", "content": text}));
    }
}

async fn find_gateway(mut connection: Connection) -> Result<String> {
    let status =
        connection.fleet.status(StatusRequest {}).await.map_err(|status| connection.explain(status))?;
    let gateways = status.into_inner().gateways;
    let connected = gateways.into_iter().find(|gateway| gateway.connected && !gateway.url.is_empty());
    Ok(connected
        .context("no gateway is connected: start one (`tandem join-token --role gateway`), or name one with --gateway")?
        .url
        .trim_end_matches('/')
        .to_owned())
}

/// Prints the answer as it comes, and returns it.
async fn answer(
    http: &reqwest::Client,
    gateway: &str,
    options: &Options,
    messages: &[Value],
) -> Result<String> {
    let mut request = json!({"model": options.model, "messages": messages, "stream": true});
    let fields = [
        ("temperature", options.temperature.map(Value::from)),
        ("seed", options.seed.map(Value::from)),
        ("max_tokens", options.max_tokens.map(Value::from)),
    ];
    for (key, value) in fields {
        if let Some(value) = value {
            request[key] = value;
        }
    }
    let response = http
        .post(format!("{gateway}/v1/chat/completions"))
        .json(&request)
        .send()
        .await
        .with_context(|| format!("no gateway answers at {gateway}"))?;
    if !response.status().is_success() {
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        bail!(
            "{}",
            body["error"]["message"].as_str().map_or_else(|| format!("HTTP {status}"), str::to_owned)
        );
    }
    let mut events = response.bytes_stream().eventsource();
    let mut text = String::new();
    loop {
        let next = tokio::time::timeout(SILENCE, events.next()).await.context("the answer stopped coming")?;
        let event = next
            .context("the connection to the gateway was lost in mid-answer")?
            .context("the stream broke")?;
        if event.data == "[DONE]" {
            println!();
            return Ok(text);
        }
        let chunk: Value = serde_json::from_str(&event.data).context("the gateway sent no JSON")?;
        if let Some(message) = chunk["error"]["message"].as_str() {
            bail!("{message}");
        }
        if let Some(seam) = chunk["tandem"]["seam"].as_object() {
            let exact =
                if seam.get("exact") == Some(&Value::Bool(true)) { "exactly" } else { "from the same words" };
            eprint!("\x1b[2m[another host goes on {exact}]\x1b[0m");
        }
        let piece = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        print!("{piece}");
        std::io::stdout().flush().context("standard output is closed")?;
        text.push_str(piece);
    }
}
