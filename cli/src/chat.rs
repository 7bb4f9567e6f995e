//! `tandem chat`: a conversation through a gateway, as any client of the OpenAI interface would have it.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use eventsource_stream::Eventsource;
use futures::StreamExt;
use serde_json::{Value, json};
use tandem_control_api::StatusRequest;

use crate::connection::Connection;
use crate::output::{faint, write};

/// Bound on the wait for the next piece of an answer; the first comes once a long prompt is read.
const SILENCE: Duration = Duration::from_secs(600);
/// Bound on reaching a gateway.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest prompt that is read from standard input, in bytes.
const PROMPT: u64 = 4 << 20;
/// Longest refusal that is read, in bytes.
const REFUSAL: usize = 64 << 10;

/// With whom and how.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem chat tiny-kimi \"What is Tandem?\"\n  tandem chat tiny-kimi\n  \
                        tandem chat tiny-kimi < question.txt\n  \
                        tandem chat kimi-k2.5 --gateway http://127.0.0.1:8080 --temperature 0.6")]
pub(crate) struct Options {
    /// The model's name, or NAMESPACE/NAME.
    model: String,
    /// The question. Without it the conversation is interactive, or the question is standard input.
    prompt: Vec<String>,
    /// Base address of a gateway; without it the operator is asked for one.
    #[arg(long, env = "TANDEM_GATEWAY", value_name = "URL")]
    gateway: Option<String>,
    /// File with authorities to trust beside the system's, as PEM, where the gateway shows a certificate of one's own.
    #[arg(long, env = "TANDEM_GATEWAY_CA", value_name = "FILE")]
    gateway_ca: Option<PathBuf>,
    /// An API key, where the gateway wants one. Other users of this machine can read command lines: prefer the variable.
    #[arg(long, env = "TANDEM_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
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
    let gateways = match &options.gateway {
        Some(gateway) => vec![gateway.trim_end_matches('/').to_owned()],
        None => find_gateways(connect()?).await?,
    };
    let http = client(options.gateway_ca.as_deref())?;
    let mut chat = Chat { http, gateways, options, messages: Vec::new() };
    if let Some(system) = &options.system {
        chat.messages.push(json!({"role": "system", "content": system}));
    }
    if !options.prompt.is_empty() {
        return chat.turn(&options.prompt.join(" ")).await;
    }
    if std::io::stdin().is_terminal() {
        return chat.converse().await;
    }
    let mut prompt = String::new();
    std::io::stdin().take(PROMPT).read_to_string(&mut prompt).context("standard input is no text")?;
    if prompt.trim().is_empty() {
        bail!("there is no question: give one as an argument or on standard input");
    }
    chat.turn(prompt.trim()).await
}

fn client(authorities: Option<&Path>) -> Result<reqwest::Client> {
    let mut client = reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE);
    if let Some(path) = authorities {
        let pem = std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
        let found = reqwest::Certificate::from_pem_bundle(&pem)
            .ok()
            .filter(|found| !found.is_empty())
            .with_context(|| format!("{} holds no certificate in PEM", path.display()))?;
        for authority in found {
            client = client.add_root_certificate(authority);
        }
    }
    Ok(client.build()?)
}

/// Gateways that the operator knows to be there, in order of their names.
async fn find_gateways(mut connection: Connection) -> Result<Vec<String>> {
    let answer = connection.fleet.status(StatusRequest {}).await;
    let gateways = answer.map_err(|status| connection.explain(&status))?.into_inner().gateways;
    let connected = gateways.into_iter().filter(|gateway| gateway.connected && !gateway.url.is_empty());
    let urls: Vec<String> = connected.map(|gateway| gateway.url.trim_end_matches('/').to_owned()).collect();
    if urls.is_empty() {
        bail!(
            "no gateway is connected: start one (`tandem join-token --role gateway`), or name one with --gateway"
        );
    }
    Ok(urls)
}

struct Chat<'a> {
    http: reqwest::Client,
    gateways: Vec<String>,
    options: &'a Options,
    messages: Vec<Value>,
}

impl Chat<'_> {
    /// Asks until an empty line. A turn that failed is forgotten, so that it can be asked again.
    async fn converse(&mut self) -> Result<()> {
        eprintln!("{} at {}. An empty line or Ctrl-D ends it.", self.options.model, self.gateways[0]);
        loop {
            eprint!("> ");
            std::io::stderr().flush().context("standard error is closed")?;
            let mut line = String::new();
            let read = std::io::stdin().lock().take(PROMPT).read_line(&mut line);
            if read.context("standard input is no text")? == 0 || line.trim().is_empty() {
                return Ok(());
            }
            let before = self.messages.len();
            if let Err(error) = self.turn(line.trim()).await {
                eprintln!("error: {error:#}");
                self.messages.truncate(before);
            }
        }
    }

    async fn turn(&mut self, question: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": question}));
        let response = self.ask().await?;
        let mut answer = Answer::default();
        let result = answer.print(response).await;
        if answer.begun() {
            write("\n")?;
        }
        result?;
        if answer.cut {
            eprintln!("{}", faint("[cut: the answer has reached its longest length]"));
        }
        self.messages.push(json!({"role": "assistant", "content": answer.text}));
        Ok(())
    }

    /// Asks the first gateway that can be reached.
    async fn ask(&self) -> Result<reqwest::Response> {
        let request = self.request();
        let mut refused = Vec::new();
        for gateway in &self.gateways {
            let mut asked = self.http.post(format!("{gateway}/v1/chat/completions")).json(&request);
            if let Some(key) = &self.options.api_key {
                asked = asked.bearer_auth(key.trim());
            }
            match asked.send().await {
                Ok(response) => return checked(response).await,
                Err(error) if error.is_connect() => refused.push(gateway.as_str()),
                Err(error) => {
                    return Err(error).with_context(|| format!("the gateway at {gateway} did not answer"));
                }
            }
        }
        bail!("no gateway answers at {}: see `tandem status`", refused.join(", "))
    }

    fn request(&self) -> Value {
        let options = self.options;
        let mut request = json!({"model": options.model, "messages": self.messages, "stream": true});
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
        request
    }
}

/// An answer, or the gateway's refusal in its own words.
async fn checked(response: reqwest::Response) -> Result<reqwest::Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        body.extend_from_slice(&piece[..piece.len().min(REFUSAL - body.len())]);
        if body.len() == REFUSAL {
            break;
        }
    }
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    match said["error"]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => bail!("the gateway answered HTTP {status}: is it a Tandem gateway?"),
    }
}

/// What has come of an answer.
#[derive(Default)]
struct Answer {
    text: String,
    /// Whether it ended because it was long enough.
    cut: bool,
}

impl Answer {
    fn begun(&self) -> bool {
        !self.text.is_empty()
    }

    /// Prints it as it comes.
    async fn print(&mut self, response: reqwest::Response) -> Result<()> {
        let mut events = response.bytes_stream().eventsource();
        while let Some(event) = events.next().await {
            let event = event.context("the connection to the gateway was lost in mid-answer")?;
            if event.data == "[DONE]" {
                return Ok(());
            }
            let chunk: Value = serde_json::from_str(&event.data).context("the gateway sent no JSON")?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                bail!("{message}");
            }
            if chunk["tandem"]["seam"].is_object() {
                let exact = chunk["tandem"]["seam"]["exact"] == true;
                let how = if exact { "exactly where it was" } else { "from the same words" };
                eprint!("{}", faint(&format!("[another host goes on {how}]")));
            }
            let choice = &chunk["choices"][0];
            let piece = choice["delta"]["content"].as_str().unwrap_or_default();
            write(piece)?;
            self.text.push_str(piece);
            self.cut |= choice["finish_reason"] == "length";
        }
        bail!("the connection to the gateway was lost in mid-answer")
    }
}
