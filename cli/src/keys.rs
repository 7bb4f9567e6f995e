//! `tandem keys`: API keys of clients. The text of a key is shown once, when it is made.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_control_api::{ApiKey, CreateKeyRequest, DeleteKeyRequest, KeySummary, KeyUsage, ListKeysRequest};

use crate::connection::Connection;
use crate::object::text;
use crate::output::{Format, for_programs, write};
use crate::span::since;
use crate::table::plain;

/// What to do with keys.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key and print it, once. Nobody can read it again.
    Create(CreateOptions),
    /// List keys, what they allow and what they have used.
    List(ListOptions),
    /// Delete a key: gateways refuse it at once.
    #[command(after_help = "Example:\n  tandem keys delete ci -n llm")]
    Delete {
        /// The key.
        name: String,
    },
}

/// What a key allows.
#[derive(Args)]
#[command(after_help = "Examples:\n  TANDEM_API_KEY=$(tandem keys create ci -n llm)\n  \
                        tandem keys create team-a -n llm --model kimi-k2.5 --tokens-per-minute 200000 --expires 90d\n\n\
                        Limits hold at each gateway: with two of them a client may get twice as much.")]
pub(crate) struct CreateOptions {
    /// The key's name in the namespace.
    name: String,
    /// A model that it may use, as in spec.model.name; repeat it for several. Without any: all of the namespace.
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// The most requests a minute.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// The most tokens a minute, of prompts and answers together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens_per_minute: Option<u64>,
    /// When it ends, as 12h or 90d from now.
    #[arg(long, value_name = "SPAN", value_parser = life)]
    expires: Option<Duration>,
}

/// Whose keys.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem keys list\n  tandem keys list -A -o json")]
pub(crate) struct ListOptions {
    /// Form of output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Keys of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// Reads `12h` and `90d`: keys live longer than anything that a command waits for.
fn life(text: &str) -> Result<Duration, String> {
    const LONGEST: u64 = 3660;
    let wrong = || "say a time as 12h or 90d".to_owned();
    let days = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => days.parse::<u64>().ok().and_then(|days| days.checked_mul(86_400)),
        (_, Some(hours)) => hours.parse::<u64>().ok().and_then(|hours| hours.checked_mul(3_600)),
        _ => None,
    };
    match days.ok_or_else(wrong)? {
        0 => Err("a key that may be used for no time is of no use".to_owned()),
        seconds if seconds > LONGEST * 86_400 => {
            Err(format!("at most {LONGEST}d; without it a key never ends"))
        }
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

pub(crate) async fn run(connection: Connection, command: &Command) -> Result<()> {
    match command {
        Command::Create(options) => create(connection, options).await,
        Command::List(options) => list(connection, options).await,
        Command::Delete { name } => delete(connection, name).await,
    }
}

async fn create(mut connection: Connection, options: &CreateOptions) -> Result<()> {
    let expires_at = options.expires.map_or(0, |life| (Timestamp::now() + life).as_second());
    let key = ApiKey {
        namespace: connection.namespace.clone(),
        name: options.name.clone(),
        models: options.models.clone(),
        requests_per_minute: options.requests_per_minute.unwrap_or(0),
        tokens_per_minute: options.tokens_per_minute.unwrap_or(0),
        expires_at,
        ..ApiKey::default()
    };
    let answer = connection.keys.create(CreateKeyRequest { key: Some(key) }).await;
    let created = answer.map_err(|status| connection.explain(&status))?.into_inner();
    write(&format!("{}\n", created.text))?;
    if std::io::stdout().is_terminal() {
        eprintln!("It is shown only now. Clients send it as `Authorization: Bearer KEY`.");
    }
    Ok(())
}

async fn list(mut connection: Connection, options: &ListOptions) -> Result<()> {
    let everywhere = options.all_namespaces;
    let namespace = if everywhere { String::new() } else { connection.namespace.clone() };
    let answer = connection.keys.list(ListKeysRequest { namespace }).await;
    let keys = answer.map_err(|status| connection.explain(&status))?.into_inner().keys;
    if options.output.is_table() {
        if keys.is_empty() {
            let place =
                if everywhere { String::new() } else { format!(" in namespace {}", connection.namespace) };
            eprintln!("There is no API key{place}. Make one with `tandem keys create NAME`.");
            return Ok(());
        }
        return write(&table(&keys, everywhere, Timestamp::now()));
    }
    let objects: Vec<Value> = keys.iter().map(object).collect();
    let label = |object: &Value| format!("key/{}", text(object, &["name"]));
    write(&for_programs(&objects, false, options.output, label)?)
}

async fn delete(mut connection: Connection, name: &str) -> Result<()> {
    let request = DeleteKeyRequest { namespace: connection.namespace.clone(), name: name.to_owned() };
    connection.keys.delete(request).await.map_err(|status| connection.explain(&status))?;
    write(&format!("key/{name} deleted\n"))
}

fn table(keys: &[KeySummary], everywhere: bool, now: Timestamp) -> String {
    let mut header = vec![
        "NAME",
        "MODELS",
        "REQUESTS/MIN",
        "TOKENS/MIN",
        "REQUESTS",
        "TOKENS",
        "LAST USED",
        "EXPIRES",
        "AGE",
    ];
    if everywhere {
        header.insert(0, "NAMESPACE");
    }
    let limit = |limit: u64| if limit == 0 { "-".to_owned() } else { limit.to_string() };
    let ago = |seconds: i64| match Timestamp::from_second(seconds) {
        Ok(then) if seconds > 0 => since(then, now),
        _ => "-".to_owned(),
    };
    let row = |summary: &KeySummary| {
        let (key, used) = parts(summary);
        let models = if key.models.is_empty() { "*".to_owned() } else { key.models.join(",") };
        let expires = match key.expires_at {
            0 => "never".to_owned(),
            at if at <= now.as_second() => "expired".to_owned(),
            at => {
                Timestamp::from_second(at).map_or_else(|_| "-".to_owned(), |at| at.strftime("%F").to_string())
            }
        };
        let mut cells = vec![
            key.name.clone(),
            models,
            limit(key.requests_per_minute.into()),
            limit(key.tokens_per_minute),
            used.requests.to_string(),
            used.prompt_tokens.saturating_add(used.completion_tokens).to_string(),
            ago(summary.last_used_at),
            expires,
            ago(summary.created_at),
        ];
        if everywhere {
            cells.insert(0, key.namespace.clone());
        }
        cells
    };
    plain(&header, keys.iter().map(row))
}

fn parts(summary: &KeySummary) -> (ApiKey, KeyUsage) {
    (summary.key.clone().unwrap_or_default(), summary.used.clone().unwrap_or_default())
}

fn object(summary: &KeySummary) -> Value {
    let (key, used) = parts(summary);
    let time = |seconds: i64| {
        (seconds > 0).then(|| Timestamp::from_second(seconds).ok()).flatten().map(|at| at.to_string())
    };
    json!({
        "namespace": key.namespace, "name": key.name, "models": key.models,
        "requestsPerMinute": key.requests_per_minute, "tokensPerMinute": key.tokens_per_minute,
        "expiresAt": time(key.expires_at), "createdAt": time(summary.created_at),
        "lastUsedAt": time(summary.last_used_at),
        "used": {
            "requests": used.requests, "promptTokens": used.prompt_tokens,
            "completionTokens": used.completion_tokens,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_hours_or_days() {
        assert_eq!(life("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(life("90d"), Ok(Duration::from_secs(90 * 86_400)));
        for wrong in ["0d", "90", "d", "9999d", "-1d", "1w"] {
            assert!(life(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_says_what_a_key_allows_and_has_used() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let summary = KeySummary {
            key: Some(ApiKey {
                name: "ci".into(),
                models: vec!["kimi".into()],
                tokens_per_minute: 5,
                ..ApiKey::default()
            }),
            created_at: 1_000_000 - 3600,
            last_used_at: 0,
            used: Some(KeyUsage {
                requests: 2,
                prompt_tokens: 30,
                completion_tokens: 4,
                ..KeyUsage::default()
            }),
        };
        let table = table(&[summary], false, now);
        let cells: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells[..8], ["ci", "kimi", "-", "5", "2", "34", "-", "never"], "{table}");
    }
}
